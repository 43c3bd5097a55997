"""Peak memory counts this process and its children, and nothing where Ray was joined."""

import subprocess
import sys
import time
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
    """The pages of a process are walked through again when it has grown."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(memory, "SECONDS_BETWEEN_SAMPLES", 0.05)
    walked = 0

    def held(process: psutil.Process, held: Callable[[psutil.Process], int] = memory.held) -> int:
        nonlocal walked
        walked += 1
        return held(process)

    monkeypatch.setattr(memory, "held", held)
    with PeakMemory() as peak:
        time.sleep(0.5)
        first, walked_first = peak.bytes, walked
        taken = bytearray(b"x") * (64 * MIB)
        time.sleep(0.5)
    assert first
    assert peak.bytes
    assert peak.bytes > first + 60 * MIB
    assert walked_first < 5 * (1 + len(psutil.Process().children(recursive=True)))
    del taken


def test_a_joined_cluster_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with PeakMemory() as joined:
        pass
    assert joined.bytes is None
