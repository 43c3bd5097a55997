"""Peak memory of a stage: all processes of this run on this machine together.

Contract: `PeakMemory` samples, in a thread, what the driver and all its descendants hold. That is everything where the
driver started Ray itself; on a cluster that it joined, the workers are not its descendants, and nothing is measured.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType

import psutil

from dream_ray.pipeline.joined import joined_cluster

SECONDS_BETWEEN_SAMPLES = 2.0
"""Short against a stage that holds a model, long against the milliseconds that listing some fifty processes takes."""

GROWTH = 0.01
"""By how much processes have to grow together before it counts."""

WALKING = 0.02
"""Which share of a core walking through pages may take. While a run starts its workers, processes come and grow at every
sample, and walking each time took a tenth of a core."""

AT_ONCE = 0.1
"""By how much processes have to grow together to be walked through whatever that costs: a model that loads is not missed. What
grows by less and goes again before walking is due is; the peak may be that much too low."""


def resident(process: psutil.Process) -> int:
    """What a process holds in RAM, with all of what it shares with others."""
    return int(process.memory_info().rss)


def held(process: psutil.Process) -> int:
    """What a process holds in RAM, with its part of what it shares with others.

    Ray's workers share libraries and the object store, and the sum of their resident sizes counts those pages once per
    worker. Only Linux knows the parts, and walks through all pages of the process for them.
    """
    info = process.memory_full_info()
    return int(getattr(info, "pss", info.uss))


def total(processes: Iterable[psutil.Process], size: Callable[[psutil.Process], int]) -> int:
    """The sum over the processes that still run and are this user's."""
    found = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found += size(process)
    return found


class PeakMemory:
    """A context that measures; `bytes` is the peak after it, None on a cluster that was joined."""

    def __init__(self) -> None:
        self.bytes: int | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        if not joined_cluster():
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        # Walking through the pages of a training costs a tenth of a core if done at each sample, and holds up what allocates
        # meanwhile. Together the same processes hold more only where the sum of their resident sizes has grown, which costs
        # next to nothing to read.
        known, largest, due = frozenset[int](), 0, 0.0
        while True:
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            pids, now = frozenset(process.pid for process in processes), total(processes, resident)
            changed = pids != known or now > (1 + GROWTH) * largest
            began = time.monotonic()
            if now > (1 + AT_ONCE) * largest or (changed and began >= due):
                self.bytes = max(self.bytes or 0, total(processes, held))
                known, largest = pids, now
                ended = time.monotonic()
                due = ended + (ended - began) / WALKING
            if self._end.wait(SECONDS_BETWEEN_SAMPLES):
                return
