"""How long something worked, counted while it still does.

Contract: a `Stopwatch` is told when work begins and ends, from any thread, and says at any time how many seconds it was under
way. Knows nothing of what is timed. A `GpuWatch` gives one to the process that holds an engine.
"""

import threading
import time
from typing import Protocol


class Stopwatch:
    """Seconds during which it ran, by the monotonic clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = 0.0
        self._since: float | None = None

    def run(self, going: bool) -> None:
        """Go on, or pause; nothing changes where it does so already."""
        with self._lock:
            now = time.monotonic()
            if self._since is not None:
                self._seconds += now - self._since
            self._since = now if going else None

    @property
    def seconds(self) -> float:
        """How long it has run, up to now."""
        with self._lock:
            running = 0.0 if self._since is None else time.monotonic() - self._since
            return self._seconds + running


class GpuWatch(Protocol):
    """Who adds up what a run's GPUs do, over all its actors; it is pickled to them."""

    def watch(self) -> Stopwatch:
        """From now on this process's GPUs count as held; the stopwatch has to run while they work."""
