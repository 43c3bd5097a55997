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
import time
import weakref
from pathlib import Path

YOUNG_SECONDS = 60.0
"""A folder younger than this is left alone: its process may not have locked it yet."""


class ScratchFolder(tempfile.TemporaryDirectory[str]):
    """A new empty folder `name`, removed at the end of the context, with the object or after the process."""

    def __init__(self, purpose: str):
        remove_abandoned(Path(tempfile.gettempdir()))
        super().__init__(prefix=f"{_prefix()}{purpose}-", ignore_cleanup_errors=True)
        # The system lets go of the lock with the process. Where it knows no locks, nothing is swept.
        handle = os.open(self.name, os.O_RDONLY)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        weakref.finalize(self, os.close, handle)


def remove_abandoned(parent: Path) -> None:
    """Remove the scratch folders of processes that have ended without doing so."""
    for folder in parent.glob(f"{_prefix()}*"):
        with contextlib.suppress(OSError):  # another user's, or another process is faster
            if time.time() - folder.stat().st_mtime > YOUNG_SECONDS and _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _prefix() -> str:
    return f"dream-ray-{socket.gethostname()}-"


def _is_abandoned(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
