"""Peak memory counts this process and its children, and nothing where Ray was joined."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

import psutil
import pytest

from dream_ray.pipeline import memory
from dream_ray.pipeline.memory import PeakMemory

MIB = 2**20


def test_a_child_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with PeakMemory() as alone:
        pass
    code = f"held = bytearray(b'x') * {64 * MIB}; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with PeakMemory() as together:
            pass
        child.communicate(b"\n")
    assert alone.bytes
    assert together.bytes
    assert together.bytes > alone.bytes + 60 * MIB


def test_what_a_process_takes_later_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages of a process are walked through where it has grown, and seldom where it has not."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(memory, "SECONDS_BETWEEN_SAMPLES", 0.02)
    calls = Counter[str]()

    def counted(read: Callable[[psutil.Process], int]) -> Callable[[psutil.Process], int]:
        def count(process: psutil.Process) -> int:
            calls[read.__name__] += 1
            return read(process)

        return count

    for read in (memory.resident, memory.held):
        monkeypatch.setattr(memory, read.__name__, counted(read))
    with PeakMemory() as peak:
        wait_until(lambda: calls["resident"] >= 50)
        assert calls["held"] < calls["resident"] / 2
        first = peak.bytes
        assert first
        taken = bytearray(b"x") * (64 * MIB)
        wait_until(lambda: (peak.bytes or 0) > first + 60 * MIB)
        del taken


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_joined_cluster_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with PeakMemory() as joined:
        pass
    assert joined.bytes is None
