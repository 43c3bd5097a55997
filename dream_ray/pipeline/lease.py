"""The lease of a run directory: one driver at a time, on whatever storage the directory lies.

    <run_dir>/lease.json    {"holder": "5f0c…", "host": "trainer-1", "pid": 4711, "space": "…", "started": 86412, "since": "…",
                             "beat": 12, "beat_at": "…"}

Contract: `held` is a context that holds the lease, renews it in a thread, and releases it whatever ends the context. Whether
another holder lives is told by its counter between two looks, timed by the watcher's own monotonic clock, so clocks that
jump or disagree do not matter: a lease that changes while one watches is held, one that stays as it is for `limit` seconds is
the remains of a killed driver and is taken over; at once where the driver ran among the processes seen from here and is not
among them any more. A holder that finds another one in its place, or that could not renew
its lease for `stop` seconds (less than `limit`: before anybody may take over), stops: it gets SIGTERM, which has to end its
main thread (the command line turns it into a KeyboardInterrupt), and `held` raises LeaseLost.

No storage in use here has a compare-and-swap through pyarrow, so two drivers that take over in the same moment may both
write; each waits `settle` seconds and looks who stayed, and at its next heartbeat the one that was overwritten stops.
"""

import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

from dream_ray import files
from dream_ray.config import ConfigError
from dream_ray.progress import now_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Times:
    """All in seconds. `heartbeat` < `stop` < `limit`."""

    heartbeat: float = 5.0
    limit: float = 60.0
    """Twelve heartbeats: a busy machine or a storage that stalls for some of them is no death, and stopping a run that
    lives costs more than a minute's wait for one that does not."""
    stop: float = 45.0
    settle: float = 1.0
    look: float = 1.0
    """Between two looks at another's lease."""


TIMES = Times()


class LeaseHeld(ConfigError):
    """Another driver works on the run directory; nothing was started."""


class LeaseLost(RuntimeError):
    """The driver had to stop, because it no longer holds its run directory."""


@dataclass(frozen=True)
class Lease:
    """Who holds a run directory. `since` and `beat_at` are by the holder's clock, for people; `beat` counts heartbeats.

    `space` is the holder's `process_space`, `started` when its process began, in clock ticks since the machine's start.
    """

    holder: str
    host: str
    pid: int
    space: str
    started: int | None
    since: str
    beat: int
    beat_at: str


class Verdict(Enum):
    """What looking at a lease says."""

    FREE = "nobody holds it"
    ALIVE = "its holder lives"
    GONE = "its holder is gone"
    UNCLEAR = "look again"


class Watch:
    """Looks at a lease until it is clear whether its holder lives; owns no clock and no file."""

    def __init__(self, limit: float):
        self._limit = limit
        self._first: tuple[bytes, float] | None = None

    def look(self, content: bytes | None, now: float) -> Verdict:
        """`content` is the lease's file, None where there is none; `now` is of a clock that only goes forward."""
        if content is None:
            return Verdict.FREE
        if self._first is None:
            self._first = content, now
        before, since = self._first
        if content != before:
            return Verdict.ALIVE
        return Verdict.GONE if now - since >= self._limit else Verdict.UNCLEAR


def process_space() -> str:
    """Names the processes that this one can see: the kernel since its start and the pid namespace (a container has its own).

    Empty where that cannot be told (not Linux).
    """
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def ended_here(lease: Lease | None) -> bool:
    """True where the holder's process would be seen from here and is not there; False wherever that is not certain."""
    if lease is None or not lease.space or lease.space != process_space():
        return False
    return _start_ticks(lease.pid) != lease.started


def _start_ticks(pid: int) -> int | None:
    """When a process began, in ticks since the machine's start, which no change of the clock moves; None where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rsplit(")", 1)[1].split()[19])  # the name, in brackets, may hold anything; starttime is field 22


def lease_uri(run_uri: str) -> str:
    """The lease's file."""
    return files.join(run_uri, "lease.json")


def parse(content: bytes | None) -> Lease | None:
    """The lease, None where there is none or where its file is torn."""
    try:
        return None if content is None else Lease(**json.loads(content))
    except (ValueError, TypeError):
        return None


def read_lease(run_uri: str) -> bytes | None:
    """The content of the lease's file, None where there is none."""
    try:
        return files.read_bytes(lease_uri(run_uri))
    except FileNotFoundError:
        return None


def why_lost(mine: Lease, content: bytes | None) -> str | None:
    """Why a holder that finds this content has lost its lease; None where it still has it."""
    found = parse(content)
    if found is None:
        return "its lease was removed"
    if found.holder != mine.holder:
        return f"the driver {found.pid} on {found.host} has taken it over since {found.since}"
    return None


def refusal(run_uri: str, content: bytes | None, times: Times = TIMES) -> LeaseHeld:
    """The error that says who holds the directory, since when, and what to do."""
    found = parse(content)
    who = f"process {found.pid} on {found.host} has held it since {found.since}" if found else "another driver holds it"
    return LeaseHeld(
        f"The run directory {run_uri} is in use: {who} and is alive. Two drivers would overwrite each other's results. Wait "
        "until it ends, stop it (Ctrl-C or SIGTERM; it leaves a state from which the same command goes on), or pass another "
        f"--run-dir. A driver that was killed frees the directory {times.limit:.0f} s after its last heartbeat at the latest."
    )


def acquire(run_uri: str, times: Times = TIMES) -> Lease:
    """Take the lease. Raises LeaseHeld where another driver lives; waits up to `limit` seconds where one seems to be gone."""
    watch = Watch(times.limit)
    told = False
    while True:
        content = read_lease(run_uri)
        verdict = Verdict.GONE if ended_here(parse(content)) else watch.look(content, time.monotonic())
        if verdict is not Verdict.UNCLEAR:
            break
        if not told:
            log.info("%s: another driver's lease is there; looking for up to %.0f s if it lives", run_uri, times.limit)
            told = True
        time.sleep(times.look)
    if verdict is Verdict.ALIVE:
        raise refusal(run_uri, content, times)
    if verdict is Verdict.GONE:
        log.warning("%s: its driver was killed; taking over", run_uri)
    mine = _lease_of_this_process()
    _write(run_uri, mine)
    time.sleep(times.settle)
    content = read_lease(run_uri)
    if why_lost(mine, content):
        raise refusal(run_uri, content, times)
    return mine


def _lease_of_this_process() -> Lease:
    return Lease(
        holder=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        space=process_space(),
        started=_start_ticks(os.getpid()),
        since=now_text(),
        beat=0,
        beat_at=now_text(),
    )


def _write(run_uri: str, lease: Lease) -> None:
    files.write_atomic(lease_uri(run_uri), json.dumps(asdict(lease)).encode())


class Holder:
    """Renews a lease in one thread and, in another, sees that this does not take too long: a storage may hang.

    `lost` says why the lease is this driver's no more, None while it is.
    """

    def __init__(self, run_uri: str, lease: Lease, times: Times):
        self._run_uri, self._lease, self._times = run_uri, lease, times
        self._beaten = time.monotonic()
        self._end = threading.Event()
        self._losing = threading.Lock()
        self.lost: str | None = None
        # Daemons: a storage that hangs must not keep the process.
        for work in (self._renew, self._watch):
            threading.Thread(target=work, name="lease", daemon=True).start()

    def _renew(self) -> None:
        while not self._end.wait(self._times.heartbeat):
            try:
                if lost := why_lost(self._lease, read_lease(self._run_uri)):
                    return self._lose(lost)
                self._lease = replace(self._lease, beat=self._lease.beat + 1, beat_at=now_text())
                _write(self._run_uri, self._lease)
                self._beaten = time.monotonic()
            except OSError as error:
                log.warning(
                    "%s: the lease could not be renewed (%s); trying again", self._run_uri, type(error).__name__
                )

    def _watch(self) -> None:
        while not self._end.wait(min(1.0, self._times.heartbeat)):
            silent = time.monotonic() - self._beaten
            if silent >= self._times.stop:
                return self._lose(f"its storage took no heartbeat for {silent:.0f} s")

    def _lose(self, reason: str) -> None:
        with self._losing:
            if self.lost is None and not self._end.is_set():
                self.lost = reason
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, signal.SIGTERM)

    def end(self) -> None:
        """Stop renewing and release the lease, if it is still this driver's."""
        with self._losing:
            self._end.set()
        try:
            if self.lost is None and not why_lost(self._lease, read_lease(self._run_uri)):
                files.delete_file(lease_uri(self._run_uri))
        except OSError as error:
            log.warning("%s: the lease could not be released (%s)", self._run_uri, type(error).__name__)


@contextmanager
def held(run_uri: str, times: Times = TIMES) -> Iterator[Holder]:
    """The lease of a run directory for the length of the context. Raises LeaseHeld, and LeaseLost out of the context."""
    holder = Holder(run_uri, acquire(run_uri, times), times)
    try:
        yield holder
    except (KeyboardInterrupt, SystemExit):
        if holder.lost is None:
            raise
        raise LeaseLost(
            f"This driver stopped, because it no longer holds the run directory {run_uri}: {holder.lost}. What was done by "
            "then is kept. Look what else works there (`dream-ray status`), and run the same command again once nothing does."
        ) from None
    finally:
        holder.end()
