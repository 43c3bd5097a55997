"""SIGKILL in the middle of a stage: the next attempt does the rows that were in flight, and the result is that of no kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import REPOSITORY
from tests.pipeline.resumed_driver import PARTS, ROWS

COUNTS = ("rows_in", "rows_out", "failed", "failures", "prompt_tokens", "completion_tokens")


def start(*folders: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.pipeline.resumed_driver", *map(str, folders)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})


def rows(folder: Path, stage: str, kind: str) -> list[dict[str, object]]:
    """A stage's rows, as a sorted list: doubled ones show."""
    found = [
        row for path in folder.glob(f"run/stages/{stage}/*/{kind}/*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    return sorted(found, key=str)


def counts(folder: Path, stage: str) -> dict[str, object]:
    (path,) = folder.glob(f"run/stages/{stage}/*/manifest.json")
    manifest = json.loads(path.read_text())
    return {name: manifest[name] for name in COUNTS}


@pytest.mark.slow
def test_a_killed_stage_goes_on_with_its_finished_parts(tmp_path: Path) -> None:
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    killed.mkdir()
    undisturbed.mkdir()
    (undisturbed / "go-on").touch()
    first = start(killed)
    try:
        deadline = time.monotonic() + 600
        while len(marks := list(killed.glob("run/stages/copy/*/parts/*.json"))) < PARTS // 3:
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    time.sleep(3)  # Ray's workers end a moment after their driver
    assert not list(killed.glob("run/stages/*/*/manifest.json"))
    written = {path: path.stat().st_mtime_ns for path in killed.glob("run/stages/*/*/*/*.parquet")}
    before = Counter((killed / "asked.txt").read_text().split())
    assert len(before) < PARTS * ROWS
    (killed / "go-on").touch()
    assert start(killed, undisturbed).wait(timeout=600) == 0

    for stage in ("slow", "copy"):
        for kind in ("data", "errors"):
            assert rows(killed, stage, kind) == rows(undisturbed, stage, kind)
        assert counts(killed, stage) == counts(undisturbed, stage)
    asked = Counter((killed / "asked.txt").read_text().split())
    assert len(asked) == PARTS * ROWS
    # What had its mark was not asked about again, and its files were not touched.
    finished = {path.stem for path in marks}
    again = {row_id for row_id, times in asked.items() if times > 1}
    assert not {row_id for row_id in again if f"{int(row_id.split('-')[0]):06d}" in finished}
    assert all(path.stat().st_mtime_ns == when for path, when in written.items() if path.stem in finished)
    assert not list(killed.rglob("*.tmp"))
