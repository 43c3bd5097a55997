"""The entry points in jobs/: their command lines and exit codes. tests/test_loop.py runs them."""

import runpy
import signal
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

JOBS = sorted(path.stem for path in (REPOSITORY / "jobs").glob("*.py"))


def call(job: str, *arguments: str) -> int:
    """Run a job in this process; the exit code."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"jobs/{job}.py", *arguments])
        try:
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(REPOSITORY / "jobs" / f"{job}.py"), run_name="__main__")
        finally:
            signal.signal(signal.SIGTERM, before)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_there_is_a_job_for_each_stage_worth_running_alone() -> None:
    assert {"rlaif", "disentangle", "sft", "rollout", "dpo", "evaluate", "serve_scorer"} == set(JOBS)


@pytest.mark.parametrize("job", JOBS)
def test_a_setting_that_cannot_work_ends_with_2(job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(job, "--config", str(tmp_path / "none.yaml")) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("job", JOBS)
def test_help_says_what_the_job_does(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(job, "--help") == 0
    assert "--config" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0", "-1", "one"])
def test_rounds_are_counted_from_1(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("dpo", "--config", "any.yaml", "--round", text) == 2
    assert "counted from 1" in capsys.readouterr().err


def test_the_scorer_has_no_run_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("serve_scorer", "--config", "any.yaml", "--run-dir", "runs/any") == 2
    assert "no meaning" in capsys.readouterr().err


@pytest.mark.parametrize("job", sorted({*JOBS} - {"serve_scorer"}))
def test_results_in_a_submitted_jobs_copy_of_its_folder_are_refused(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    config = str(REPOSITORY / "configs" / "local.yaml")
    assert call(job, "--config", config, "student.model=nowhere") == 2
    assert "would lie in the copy of the working directory" in capsys.readouterr().err
    assert call(job, "--config", config, "--run-dir", str(tmp_path / "mounted"), "student.model=nowhere") == 2
    assert "nowhere" in capsys.readouterr().err
