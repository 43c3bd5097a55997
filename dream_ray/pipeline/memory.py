"""Peak memory of a stage: all processes of this run on this machine together.

Contract: `PeakMemory` samples, in a thread, what the driver and all its descendants hold. That is everything where the
driver started Ray itself; on a cluster that it joined, the workers are not its descendants, and nothing is measured.
"""

import os
import threading
from types import TracebackType

import psutil

SECONDS_BETWEEN_SAMPLES = 2.0
"""Short against a stage that holds a model, long against the milliseconds that reading some fifty processes takes."""


def held_bytes() -> int:
    """What this process and its descendants hold in RAM, shared pages counted once."""
    total = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            info = process.memory_full_info()
        except psutil.Error:  # it has ended since, or is another user's
            continue
        # Proportional set size: Ray's workers share libraries and the object store, and the sum of their resident sizes
        # counts those pages once per worker. Only Linux knows it.
        total += getattr(info, "pss", info.uss)
    return total


class PeakMemory:
    """A context that measures; `bytes` is the peak after it, None on a cluster that was joined."""

    def __init__(self) -> None:
        self.bytes: int | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        if "RAY_ADDRESS" not in os.environ:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes or 0, held_bytes())
            if self._end.wait(SECONDS_BETWEEN_SAMPLES):
                return
