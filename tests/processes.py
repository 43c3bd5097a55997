"""What engines leave behind, for tests that expect nothing."""

import gc
import time

import psutil

END_SECONDS = 60.0
"""How long an actor may take to end after its dataset has."""


def large_processes() -> list[str]:
    """What holds more than 600 MiB below this process (an engine has over 1 GiB) or bears vLLM's name."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.memory_info().rss > 600 * 2**20 or "VLLM" in process.name() or "Sampler" in process.name():
                found.append(f"{process.pid} {process.name()}")
        except psutil.NoSuchProcess:
            continue
    return found


def wait_until_none_is_left() -> None:
    gc.collect()  # Ray ends an actor when its last handle is gone; a failed pass leaves some in its traceback's circles
    deadline = time.monotonic() + END_SECONDS
    while (left := large_processes()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left, f"{END_SECONDS:.0f} s after the dataset ended there still ran: {left}"
