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
    code = f"held = bytearray(b'x') * {256 * MIB}; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with PeakMemory() as together:
            pass
        child.communicate(b"\n")
    assert alone.bytes
    assert together.bytes
    # Half of it: meanwhile the system may take from this process what it has not used for long.
    assert together.bytes > alone.bytes + 128 * MIB


def test_what_a_process_takes_later_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages of a process are walked through where it has grown, and not where it has not."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(memory, "SECONDS_BETWEEN_SAMPLES", 0.02)
    monkeypatch.setattr(psutil.Process, "children", lambda process, recursive: [])
    size = 100 * MIB
    calls = Counter[str]()

    def reading(name: str) -> Callable[[psutil.Process], int]:
        def read(process: psutil.Process) -> int:
            calls[name] += 1
            return size

        return read

    def a_whole_sample() -> None:
        """The one under way may have read the size before; the next is over when the one after it begins."""
        seen = calls["resident"]
        wait_until(lambda: calls["resident"] >= seen + 3)

    for name in ("resident", "held"):
        monkeypatch.setattr(memory, name, reading(name))
    with PeakMemory() as peak:
        for now, walks, most in ((100, 1, 100), (50, 1, 100), (100, 1, 100), (164, 2, 164)):
            size = now * MIB
            a_whole_sample()
            assert (calls["held"], peak.bytes) == (walks, most * MIB)


def test_what_grows_little_waits_while_walking_costs_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(memory, "SECONDS_BETWEEN_SAMPLES", 0.02)
    monkeypatch.setattr(memory, "WALKING", 0.1)
    monkeypatch.setattr(psutil.Process, "children", lambda process, recursive: [])
    size = 100 * MIB
    walks = [0.0]

    def walk(process: psutil.Process) -> int:
        time.sleep(0.1)
        walks.append(time.monotonic())
        return size

    monkeypatch.setattr(memory, "resident", lambda process: size)
    monkeypatch.setattr(memory, "held", walk)
    with PeakMemory():
        wait_until(lambda: len(walks) == 2)
        size = 105 * MIB
        monkeypatch.setattr(memory, "WALKING", 0.001)  # from the next walk on it is 100 s, more than this waits
        wait_until(lambda: len(walks) == 3)
        assert walks[2] - walks[1] > 1.0  # ten times a walk, and the walk
        size = 130 * MIB
        wait_until(lambda: len(walks) == 4)


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
