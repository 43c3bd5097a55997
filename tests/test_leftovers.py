"""However a command ends, nothing of it is left on the machine; and the test sees what it would have to see."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import leftovers
from tests.conftest import REPOSITORY
from tests.leftovers import RAY, SHARED_MEMORY, Leftovers

ROWS = 40


def test_what_is_left_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = Leftovers(tmp_path)
    assert left.left() == []
    segment, semaphore = (SHARED_MEMORY / f"{kind}-{tmp_path.name}" for kind in ("test", "sem.mp"))
    waits = [sys.executable, "-c", "import time; time.sleep(30)"]
    processes = [subprocess.Popen(waits, env=left.environment)]
    (tmp_path / RAY).mkdir()
    with (tmp_path / RAY / "agent.log").open("w") as log:  # as of Ray's agents, whose environment is not to be read
        processes.append(subprocess.Popen(waits, env={}, stdout=log))
    try:
        segment.touch()
        (tmp_path / "model").mkdir()
        assert [item.split(":")[0] for item in left.left()] == ["process", "process", "shared memory", "temporary"]
        semaphore.touch()
        monkeypatch.setattr(leftovers, "TRACKER", "a program that nobody runs")
        assert f"shared memory: {semaphore.name}" in left.left()
        monkeypatch.setattr(leftovers, "TRACKER", " ".join(psutil.Process().cmdline()))  # whose semaphore is it?
        assert f"shared memory: {semaphore.name}" not in left.left()
    finally:
        segment.unlink()
        semaphore.unlink(missing_ok=True)
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def arguments(tmp_path: Path, student: Path) -> list[str]:
    """Of a stage that takes some seconds: prompts of words only, and one row that cannot be read."""
    lines = [
        {"id": str(number), "turns": [{"role": "user", "text": f"How does one open lock number {number}?"}]}
        for number in range(ROWS)
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps(line) for line in lines) + "\n{broken\n")
    return [
        str(REPOSITORY / "jobs" / "disentangle.py"), "--config", str(REPOSITORY / "configs" / "local.yaml"),
        "--run-dir", str(tmp_path / "run"), f"student.model={student}", f"sources=[{{path: {prompts}}}]", "part_rows=1",
    ]  # fmt: skip


def start(arguments: list[str], left: Leftovers, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        command = [sys.executable, *arguments]
        return subprocess.Popen(command, stdout=stream, stderr=stream, cwd=REPOSITORY, env=left.environment)


def finished_parts(run: Path) -> int:
    return len(list(run.glob("stages/disentangle/*/parts/*.json")))


def wait_for_rows(driver: subprocess.Popen[bytes], run: Path, rows: int, log: Path) -> None:
    deadline = time.monotonic() + 600
    while finished_parts(run) < rows:
        assert driver.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_nothing_is_left_however_a_command_ends(arguments: list[str], tmp_path: Path, short_folder: Path) -> None:
    """By an error, and by SIGTERM; the other ways are in test_loop.py."""
    left, log, run = Leftovers(short_folder), tmp_path / "log", tmp_path / "run"
    assert start([*arguments, "max_failure_rate=0"], left, log).wait(timeout=600) == 1, log.read_text()[-2000:]
    left.expect_none()
    driver = start(arguments, left, log)
    wait_for_rows(driver, run, 5, log)
    driver.send_signal(signal.SIGTERM)
    # A spot machine gives 30 s between SIGTERM and its end.
    assert driver.wait(timeout=30) == 130, log.read_text()[-2000:]
    left.expect_none()
    assert not (run / "lease.json").exists()
    # Half a file of a worker that was killed while it wrote: nowhere but where the stage's next attempt removes it.
    assert {path.parent for path in run.rglob("*.tmp")} <= set((run / "stages" / "disentangle").glob("*/*"))
