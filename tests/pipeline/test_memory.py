"""Peak memory counts this process and its children, and nothing where Ray was joined."""

import subprocess
import sys

import pytest

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


def test_a_joined_cluster_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    with PeakMemory() as memory:
        pass
    assert memory.bytes is None
