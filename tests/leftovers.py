"""What a run may leave behind on its machine: processes, shared memory and temporary folders; for tests that expect nothing.

Not counted, as they are next to nothing: Ray's logs, which stay by design; the folder of a socket or two that its dashboard
makes through Python's multiprocessing and is killed before it can remove; the empty folder of PyTorch's compiler, a cache that
stays by design; semaphores, while a tracker of multiprocessing lives that is not the commands': that of a killed process stays
until its tracker ends, nothing says whose it is, and another test's engine may have been killed.

Where Ray's raylet is killed, two of its processes, the agents, live on for a minute: they try that long to report its end to
what ended with it (`timeout=60` in `ray._private.utils.publish_error_to_driver`; no setting changes it). It is killed with the
driver, and at an orderly end where it takes longer than a second, as it may beside other tests.
"""

import os
import time
from pathlib import Path

import psutil

END_SECONDS = 90.0
"""How long the last processes of a run may take to end: more than Ray's agents may need."""
SOCKETS, SEMAPHORES, COMPILER, RAY = "pymp-", "sem.mp-", "torchinductor_", "ray"
TRACKER = "multiprocessing.resource_tracker"
SHARED_MEMORY = Path("/dev/shm")


class Leftovers:
    """Counts what appears from now on. Commands whose leftovers count get `environment`."""

    def __init__(self, folder: Path):
        """`folder` is empty, for the temporary files of the commands; by it their processes are known, too."""
        self._folder = folder
        self._segments = _segments()
        self.environment = os.environ | {"TMPDIR": str(folder), "RAY_TMPDIR": str(folder)}

    def left(self) -> list[str]:
        """What there is of the commands now."""
        files = {
            f"temporary: {path.name}"
            for path in self._folder.iterdir()
            if not path.name.startswith((SOCKETS, COMPILER)) and path.name != RAY
        }
        return sorted(self._processes() | self._shared_memory() | files)

    def expect_none(self) -> None:
        """Fail where something is still there after END_SECONDS."""
        deadline = time.monotonic() + END_SECONDS
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(1)
        assert not left, f"{END_SECONDS:.0f} s after the command ended there still is: {left}"

    def _processes(self) -> set[str]:
        running = psutil.process_iter(["name", "environ"])  # read once: a process may end at any time
        return {f"process: {process.pid} {process.info['name']}" for process in running if self._is_mine(process)}

    def _is_mine(self, process: psutil.Process) -> bool:
        """Whether it, read with its `environ`, is of the commands: drivers, Ray, its workers, engines."""
        return started_for(process, "TMPDIR", self._folder)

    def _shared_memory(self) -> set[str]:
        """New segments, but for those in the memory of living processes of others: other tests run beside."""
        new = _segments() - self._segments
        if new:
            running = psutil.process_iter(["environ", "cmdline"])
            others = [process for process in running if not self._is_mine(process)]
            new -= {path for process in others for path in segments_of(process)}
            if any(TRACKER in " ".join(process.info["cmdline"] or ()) for process in others):
                new = {path for path in new if not path.name.startswith(SEMAPHORES)}
        return {f"shared memory: {path.name}" for path in new}


def started_for(process: psutil.Process, variable: str, folder: Path) -> bool:
    """Whether a process, read with its `environ`, inherited a `variable` that names a folder or one below it.

    Ray writes the titles of some over as much of their environment as it needs; those are known by the files that they log to,
    where Ray's own folder is below it, too."""
    if process.pid == os.getpid():  # it may read the folder's files
        return False
    if named := (process.info["environ"] or {}).get(variable):
        return named.startswith(str(folder))
    try:
        return any(file.path.startswith(str(folder)) for file in process.open_files())
    except psutil.Error:  # it has ended, or is another user's
        return False


def segments_of(process: psutil.Process) -> set[Path]:
    """The segments that a process has in its memory."""
    try:
        return {Path(place.path) for place in process.memory_maps() if place.path.startswith(f"{SHARED_MEMORY}/")}
    except psutil.Error:  # it has ended, or is another user's
        return set()


def _segments() -> set[Path]:
    return set(SHARED_MEMORY.iterdir())
