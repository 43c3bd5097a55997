"""The entry points in jobs/: their command lines, their exit codes, and that the loop goes on from what they made."""

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dream_ray.sources.demo import write_demo
from tests.conftest import REPOSITORY
from tests.test_loop import SMALL

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


@pytest.mark.slow
def test_the_loop_goes_on_from_what_the_stages_alone_made(tmp_path: Path, student: Path) -> None:
    lines = [json.loads(line) for line in write_demo(tmp_path).read_text().splitlines()]
    few = [
        line
        for split, number in (("train", 6), ("dev", 3), ("held_out", 3))
        for risk in ("risky", "benign")
        for line in [line for line in lines if (line["split"], line["risk"]) == (split, risk)][:number]
    ]
    prompts = tmp_path / "few.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in few))
    run_dir = tmp_path / "run"

    def submit(job: str) -> str:
        command = [sys.executable, f"jobs/{job}.py", "--config", "configs/local.yaml", "--run-dir", str(run_dir)]
        settings = [*SMALL, f"student.model={student}", f"sources=[{{path: {prompts}, name: few}}]"]
        done = subprocess.run(
            [*command, *settings], capture_output=True, text=True, cwd=REPOSITORY, timeout=500,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    order = (
        "ingest",
        "disentangle",
        "demonstrate",
        "sft",
        "round-1/rollout",
        "round-1/judge",
        "round-1/pair",
        "round-1/dpo",
    )
    made: set[str] = set()
    for job in ("disentangle", "sft", "rollout", "dpo"):
        out = submit(job)
        assert all(f"{key}: done earlier" in out for key in made)
        made = {
            path.parent.relative_to(run_dir / "stages").parent.as_posix() for path in run_dir.rglob("manifest.json")
        }
        assert made == set(order[: {"disentangle": 2, "sft": 4, "rollout": 6, "dpo": 8}[job]])
    out = submit("rlaif")
    assert all(f"{key}: done earlier" in out for key in order)
    assert (run_dir / "policy.json").is_file()
