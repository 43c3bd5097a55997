"""Temporary folders that do not outlive their process, however it ends.

Contract: a `ScratchFolder` is a `tempfile.TemporaryDirectory`, locked for as long as its process lives. A process that is
killed cannot remove its own; the next one that makes such a folder on that machine removes those that nobody holds.
They hold models, so what is left over counts in gigabytes. The machine's name is in the folder's: several may share a
file system that keeps locks to one machine.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import weakref
from pathlib import Path


class ScratchFolder(tempfile.TemporaryDirectory[str]):
    """A new empty folder `name`, removed at the end of the context, with the object or after the process."""

    def __init__(self, purpose: str):
        remove_abandoned(Path(tempfile.gettempdir()))
        handle = None
        while handle is None:  # until none was taken for an abandoned one between its making and its locking
            super().__init__(prefix=f"{_prefix()}{purpose}-", ignore_cleanup_errors=True)
            handle = _hold(self.name)
        # The system lets go of the lock with the process.
        weakref.finalize(self, os.close, handle)


def remove_abandoned(parent: Path) -> None:
    """Remove the scratch folders of processes that have ended without doing so."""
    for folder in parent.glob(f"{_prefix()}*"):
        with contextlib.suppress(OSError):  # another user's, or another process is faster
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


def _prefix() -> str:
    return f"dream-ray-{socket.gethostname()}-"


def _hold(folder: str) -> int | None:
    """A descriptor that holds the lock of a folder; None where another process removes it. Where the file system knows
    no locks, the descriptor alone: nothing is swept there."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        return handle
    if not os.path.exists(folder):
        os.close(handle)
        return None
    return handle
