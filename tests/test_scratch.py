"""Temporary folders: gone with their process, or with the next one where that was killed."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dream_ray import scratch
from dream_ray.scratch import ScratchFolder
from dream_ray.train.policy import store_folder
from tests.conftest import REPOSITORY

HOLD = """
import time
from dream_ray.scratch import ScratchFolder
folder = ScratchFolder("test")
print(folder.name, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def test_it_goes_with_its_context_and_with_its_object(tmp_path: Path) -> None:
    with ScratchFolder("test") as name:
        (Path(name) / "model").write_text("weights")
    folder = ScratchFolder("test")
    assert [path.name for path in tmp_path.iterdir()] == [Path(folder.name).name]
    del folder
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_not(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
    )
    assert owner.stdout is not None
    held = Path(owner.stdout.readline().strip())
    with ScratchFolder("test"):
        assert held.exists()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert held.exists()
    with ScratchFolder("test"):
        assert not held.exists()


def test_those_of_other_programs_and_machines_stay(tmp_path: Path) -> None:
    for name in (f"dream-ray-{socket.gethostname()}-test-0", "dream-ray-elsewhere-test-0", "other-old"):
        (tmp_path / name).mkdir()
    with ScratchFolder("test"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"dream-ray-elsewhere-test-0", "other-old"}


def test_one_that_is_swept_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold, refused = scratch._hold, []

    def after_a_sweep(folder: str) -> int | None:
        if not refused:
            refused.append(folder)
            scratch.remove_abandoned(tmp_path)
            assert not Path(folder).exists()
        return hold(folder)

    monkeypatch.setattr(scratch, "_hold", after_a_sweep)
    with ScratchFolder("test") as name:
        assert [str(path) for path in tmp_path.iterdir()] == [name] != refused
        scratch.remove_abandoned(tmp_path)
        assert Path(name).exists()


def test_a_folder_that_was_half_stored_is_removed_by_the_next_try(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    for name in (".adapter.store-abc", ".other.store-abc"):
        (tmp_path / "stage" / name).mkdir(parents=True)
    store_folder(source, str(tmp_path / "stage" / "adapter"))
    assert {path.name for path in (tmp_path / "stage").iterdir()} == {"adapter", ".other.store-abc"}
