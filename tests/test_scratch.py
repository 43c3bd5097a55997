"""Temporary folders: gone with their process, or with the next one where that was killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dream_ray.scratch import YOUNG_SECONDS, ScratchFolder
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


def grow_old(folder: Path) -> None:
    then = time.time() - 2 * YOUNG_SECONDS
    os.utime(folder, (then, then))


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
    grow_old(held)
    with ScratchFolder("test"):
        assert held.exists()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert held.exists()
    with ScratchFolder("test"):
        assert not held.exists()


def test_a_young_folder_and_those_of_other_programs_and_machines_stay(tmp_path: Path) -> None:
    young = f"dream-ray-{socket.gethostname()}-test-0"
    for name in (young, "dream-ray-elsewhere-test-0", "other-old"):
        (tmp_path / name).mkdir()
        if name != young:
            grow_old(tmp_path / name)
    with ScratchFolder("test"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {young, "dream-ray-elsewhere-test-0", "other-old"}
    grow_old(tmp_path / young)
    with ScratchFolder("test"):
        assert not (tmp_path / young).exists()


def test_a_folder_that_was_half_stored_is_removed_by_the_next_try(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    for name in (".adapter.store-abc", ".other.store-abc"):
        (tmp_path / "stage" / name).mkdir(parents=True)
    store_folder(source, str(tmp_path / "stage" / "adapter"))
    assert {path.name for path in (tmp_path / "stage").iterdir()} == {"adapter", ".other.store-abc"}
