"""One driver at a time on a run directory: who is refused, who takes over, and when a holder has to stop."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dream_ray import files
from dream_ray.pipeline import lease as leases
from dream_ray.pipeline.lease import Lease, LeaseHeld, LeaseLost, Times, Verdict, Watch, held, parse, why_lost
from tests.conftest import REPOSITORY

SHORT = Times(heartbeat=0.1, limit=2.0, stop=1.0, settle=0.2, look=0.05)
"""For tests; in the same order as the real ones."""

MINE = Lease("one", "trainer-1", 11, "elsewhere", 5, "2026-01-01T00:00:00+00:00", 3, "2026-01-01T00:00:15+00:00")


def content(lease: Lease) -> bytes:
    return json.dumps(asdict(lease)).encode()


@pytest.mark.parametrize(
    ("looks", "verdict"),
    [
        ([(None, 0)], Verdict.FREE),
        ([(b"1", 0)], Verdict.UNCLEAR),
        ([(b"1", 0), (b"1", 29)], Verdict.UNCLEAR),
        ([(b"1", 0), (b"1", 29), (b"2", 31)], Verdict.ALIVE),
        ([(b"1", 0), (b"1", 30)], Verdict.GONE),
        ([(b"torn", 100), (b"torn", 131)], Verdict.GONE),
        ([(b"1", 0), (None, 5)], Verdict.FREE),
    ],
)
def test_a_holder_lives_while_its_counter_moves(looks: list[tuple[bytes | None, float]], verdict: Verdict) -> None:
    watch = Watch(limit=30)
    assert [watch.look(*look) for look in looks][-1] is verdict


def test_clocks_that_jump_or_disagree_do_not_matter() -> None:
    """Heartbeats from years ahead or back are heartbeats; a lease that stands still is gone whatever time it names."""
    watch = Watch(limit=30)
    watch.look(content(replace(MINE, beat_at="2049-01-01T00:00:00+00:00")), 0)
    assert watch.look(content(replace(MINE, beat=4, beat_at="1999-01-01T00:00:00+00:00")), 1) is Verdict.ALIVE
    still = content(replace(MINE, beat_at="2049-01-01T00:00:00+00:00"))
    watch = Watch(limit=30)
    watch.look(still, 0)
    assert watch.look(still, 31) is Verdict.GONE


def test_a_holder_knows_its_own_lease() -> None:
    assert why_lost(MINE, content(replace(MINE, beat=9))) is None
    assert why_lost(MINE, None) == "its lease was removed"
    taken = why_lost(MINE, content(replace(MINE, holder="two", host="trainer-2", pid=22)))
    assert taken is not None
    assert "22 on trainer-2" in taken


def test_a_process_that_would_be_seen_from_here_and_is_not_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here = replace(leases._lease_of_this_process(), pid=child.pid, started=leases._start_ticks(child.pid))
    assert not leases.ended_here(here)
    child.kill()
    child.wait()
    assert leases.ended_here(here)
    assert not leases.ended_here(replace(here, space="another machine"))
    assert not leases.ended_here(replace(here, space=""))
    again = leases._lease_of_this_process()
    assert not leases.ended_here(again)
    assert leases.ended_here(
        replace(again, started=again.started - 1 if again.started else None)
    )  # its number was used again
    assert not leases.ended_here(None)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """As the command line sets it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def hold_until_lost(run_uri: str) -> None:
    with sigterm_as_interrupt(), held(run_uri, SHORT):
        time.sleep(30)
        raise AssertionError("the holder was not stopped")


def test_the_lease_is_renewed_and_released(tmp_path: Path) -> None:
    file = tmp_path / "lease.json"
    with held(str(tmp_path), SHORT):
        first = parse(file.read_bytes())
        deadline = time.monotonic() + 10
        while parse(file.read_bytes()) == first and time.monotonic() < deadline:
            time.sleep(0.05)
        later = parse(file.read_bytes())
    assert first is not None
    assert later is not None
    assert later.beat > first.beat
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_run_releases_too_and_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), held(str(tmp_path), SHORT):
        raise ZeroDivisionError
    assert not (tmp_path / "lease.json").exists()


def test_a_holder_whose_storage_fails_stops_before_another_may_take_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = threading.Event()

    def full(uri: str, content: bytes) -> None:
        if written.is_set():
            raise OSError(28, "No space left on device")
        written.set()
        Path(uri).write_bytes(content)

    monkeypatch.setattr(leases.files, "write_atomic", full)
    with pytest.raises(LeaseLost, match="its storage took no heartbeat"):
        hold_until_lost(str(tmp_path))
    assert SHORT.stop < SHORT.limit
    assert leases.TIMES.heartbeat < leases.TIMES.stop < leases.TIMES.limit


def test_a_holder_whose_storage_hangs_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = threading.Event()

    def read(run_uri: str) -> bytes | None:
        if threading.current_thread() is not threading.main_thread():
            hanging.wait()
        file = Path(run_uri, "lease.json")
        return file.read_bytes() if file.exists() else None

    monkeypatch.setattr(leases, "read_lease", read)
    try:
        with pytest.raises(LeaseLost, match="its storage took no heartbeat"):
            hold_until_lost(str(tmp_path))
    finally:
        hanging.set()


def test_a_holder_that_was_replaced_stops_and_leaves_the_others_lease(tmp_path: Path) -> None:
    other = content(replace(MINE, holder="two"))
    timer = threading.Timer(0.5, files.write_atomic, (str(tmp_path / "lease.json"), other))
    timer.start()
    with pytest.raises(LeaseLost, match="has taken it over"):
        hold_until_lost(str(tmp_path))
    timer.join()
    assert (tmp_path / "lease.json").read_bytes() == other


HOLDER = """
import signal, sys, time
from dream_ray.pipeline.lease import LeaseHeld, Times, held

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, interrupt)
signal.signal(signal.SIGINT, interrupt)
while time.time() < float(sys.argv[2]):
    time.sleep(0.001)
try:
    with held(sys.argv[1], Times(heartbeat=0.1, limit=2.0, stop=1.0, settle=0.5, look=0.05)):
        print("held", flush=True)
        time.sleep(60)
except LeaseHeld:
    print("refused", flush=True)
except KeyboardInterrupt:
    pass
"""


def driver(run_dir: Path, not_before: float = 0.0) -> subprocess.Popen[str]:
    """Another process that wants the directory."""
    command = [sys.executable, "-c", HOLDER, str(run_dir), str(not_before)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.slow
def test_the_second_driver_is_told_who_works_there(tmp_path: Path) -> None:
    first = driver(tmp_path)
    try:
        assert said(first) == "held"
        with pytest.raises(LeaseHeld) as refused, held(str(tmp_path), SHORT):
            pass
        for words in (str(tmp_path), f"process {first.pid} on", "has held it since 20", "pass another --run-dir"):
            assert words in str(refused.value)
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_next_driver_follows_however_the_first_one_ended(tmp_path: Path, end: signal.Signals) -> None:
    first = driver(tmp_path)
    try:
        assert said(first) == "held"
        first.send_signal(end)
        first.wait(timeout=20)
    finally:
        first.kill()
    assert (tmp_path / "lease.json").exists() is (end is signal.SIGKILL)
    with held(str(tmp_path), leases.TIMES) as mine:  # no waiting: it ran here
        found = parse((tmp_path / "lease.json").read_bytes())
        assert found is not None
        assert found.pid != first.pid
        assert mine.lost is None


@pytest.mark.slow
def test_of_several_that_start_at_once_one_goes_on(tmp_path: Path) -> None:
    start = time.time() + 8
    drivers = [driver(tmp_path, start) for _ in range(4)]
    try:
        assert sorted(said(process) for process in drivers) == ["held", "refused", "refused", "refused"]
    finally:
        for process in drivers:
            process.kill()
            process.wait()
