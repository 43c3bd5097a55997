"""`dream-ray plan` as a user runs it: in seconds, without Ray and torch, nothing written."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.doctor.published import a_student
from tests.pipeline.test_forecast import PRICED, write_prompts

LIGHT = """
import sys
from typer.testing import CliRunner
from dream_ray.cli import app
done = CliRunner().invoke(app, sys.argv[1:])
print(done.output)
heavy = {"ray", "torch", "transformers", "vllm"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else done.exit_code)
"""


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "120", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", LIGHT, "plan", str(REPOSITORY / "configs" / "local.yaml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=120)


def test_the_plan_names_stages_total_and_budget(tmp_path: Path) -> None:
    write_prompts(tmp_path)
    settings = [
        f"student.model={a_student(tmp_path / 'student')}", f"sources=[{{path: {tmp_path}/prompts.jsonl}}]",
        f"teacher.chat={PRICED}", "budget.max_cost_usd=0.001", "--run-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    done = plan(*settings)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("disentangle", "round-2/judge", "depends on round 1", "still to do", "OVER", "the prompts' labels"):
        assert words in done.stdout, words
    assert not (tmp_path / "run").exists()


def test_a_wrong_setting_is_found(tmp_path: Path) -> None:
    done = plan(f"student.model={a_student(tmp_path / 'student')}", "sources=[{path: no/such.jsonl}]")
    assert done.returncode == 2, done.stdout + done.stderr
