"""What nodes do when they come up: the pinned packages, and the models from the bucket."""

import importlib.util
import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FETCH = REPOSITORY / "cluster" / "fetch_models.py"
SETUP = REPOSITORY / "cluster" / "setup_node.sh"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def fetch(source: str, destination: Path) -> Ended:
    """cluster/fetch_models.py as a command, in this process: pyarrow takes seconds to load."""
    spec = importlib.util.spec_from_file_location("fetch_models", FETCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out, error = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(FETCH), source, str(destination)])
        code = module.main()
    return Ended(code, out.getvalue(), error.getvalue())


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    folder = tmp_path / "bucket" / "models"
    (folder / "student").mkdir(parents=True)
    (folder / "student" / "config.json").write_text("{}")
    return folder


def test_models_are_copied_once(bucket: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    first = fetch(bucket.as_uri(), models)
    assert first.returncode == 0, first.stderr
    assert (models / "student" / "config.json").read_text() == "{}"
    (bucket / "student" / "config.json").write_text("changed")
    again = fetch(bucket.as_uri(), models)
    assert "already" in again.stdout
    assert (models / "student" / "config.json").read_text() == "{}"


def test_a_copy_that_was_cut_off_or_came_from_elsewhere_is_made_anew(bucket: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "student").mkdir(parents=True)
    (models / "student" / "half.safetensors").write_text("half")
    assert fetch(bucket.as_uri(), models).returncode == 0
    assert [path.name for path in (models / "student").iterdir()] == ["config.json"]
    other = tmp_path / "other"
    (other / "judge").mkdir(parents=True)
    (other / "judge" / "config.json").write_text("{}")
    assert fetch(other.as_uri(), models).returncode == 0
    assert {path.name for path in models.iterdir() if path.is_dir()} == {"judge"}


def test_a_source_that_is_not_there_ends_with_a_sentence(tmp_path: Path) -> None:
    done = fetch((tmp_path / "nothing").as_uri(), tmp_path / "models")
    assert done.returncode == 1
    assert "could not be copied" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = fetch((tmp_path / "empty").as_uri(), tmp_path / "models")
    assert done.returncode == 1
    assert "one folder per model" in done.stderr


def setup(home: Path, path: Path, *pins: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SETUP), *map(str, pins)],
        capture_output=True, text=True, check=False, env=os.environ | {"HOME": str(home), "PATH": f"{path}:/usr/bin:/bin"},
    )  # fmt: skip


def test_packages_are_installed_once_for_the_same_pins(tmp_path: Path) -> None:
    """A stand-in for python makes the venv: what is checked is when one is made, not pip."""
    programs, home = tmp_path / "bin", tmp_path / "home"
    programs.mkdir()
    home.mkdir()
    calls = tmp_path / "calls"
    fake = programs / "python3.11"
    fake.write_text(
        f'#!/bin/bash\n[[ $1 == -c ]] && exit 0\necho "$@" >>{calls}\n'
        f'if [[ $2 == venv ]]; then mkdir -p "$3/bin"; cp {fake} "$3/bin/python"; fi\n'
    )
    fake.chmod(0o700)
    pins = tmp_path / "gpu.txt"
    pins.write_text("one==1\n")
    assert setup(home, programs, pins).returncode == 0
    assert setup(home, programs, pins).returncode == 0
    assert calls.read_text().splitlines() == [
        f"-m venv {home}/venv",
        f"-m pip install --quiet --no-deps -r {pins}",
    ]
    pins.write_text("one==2\n")
    assert setup(home, programs, pins).returncode == 0
    assert len(calls.read_text().splitlines()) == 4


def test_setup_without_pins_says_how_it_is_called(tmp_path: Path) -> None:
    done = setup(tmp_path, tmp_path)
    assert done.returncode == 2
    assert "usage" in done.stderr
