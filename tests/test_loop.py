"""The whole loop as a user runs it, every part real: stages alone, killed, resumed, finished, run again; wrong settings."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dream_ray import records
from dream_ray.pipeline.reporting import write_report
from dream_ray.records import schema_of
from dream_ray.sources.demo import write_demo
from tests.conftest import REPOSITORY
from tests.doctor.published import a_student
from tests.leftovers import Leftovers
from tests.object_store import ObjectStore, object_store

SMALL = [
    "rounds=1", "part_rows=8", "rollout.k=2", "rollout.max_tokens=12", "sft.epochs=1", "dpo.epochs=1",
    "sft.batch_size=4", "sft.micro_batch_size=4", "dpo.batch_size=2", "dpo.micro_batch_size=2", "pairs.margin=0.01",
    "max_failure_rate=0.5", "pairs.max_length_ratio=50", "pairs.max_shift_ratio=50", "rollout.share=1",
]  # fmt: skip
"""Settings that make a run small; nothing is learnt from it."""


def command(*arguments: str, job: str = "rlaif") -> list[str]:
    return [
        sys.executable,
        str(REPOSITORY / "jobs" / f"{job}.py"),
        "--config",
        str(REPOSITORY / "configs" / "local.yaml"),
        *arguments,
    ]


def run(
    *arguments: str, timeout: int = 1500, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout, cwd=REPOSITORY, env=environment
    )


def finished_stages(target: Path) -> dict[str, float]:
    """The finished stages of a run and when each was."""
    stages = target / "stages"
    return {
        path.parent.parent.relative_to(stages).as_posix(): path.stat().st_mtime
        for path in stages.rglob("manifest.json")
    }


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few demo prompts of each split and kind, and two rows that cannot be used."""
    folder = tmp_path_factory.mktemp("demo")
    lines = [json.loads(line) for line in write_demo(folder).read_text().splitlines()]
    chosen = []
    for split, per_kind in (("train", 6), ("dev", 3), ("held_out", 3)):
        for risk in ("risky", "benign"):
            chosen += [line for line in lines if (line["split"], line["risk"]) == (split, risk)][:per_kind]
    missing = chosen[0] | {
        "id": "no-image",
        "turns": [{"role": "user", "text": "Hello", "images": ["images/none.png"]}],
    }
    path = folder / "few.jsonl"
    path.write_text("\n".join([json.dumps(line) for line in (*chosen, missing)] + ["{broken"]) + "\n")
    return path


@pytest.fixture(scope="module")
def arguments(prompts: Path, student: Path) -> list[str]:
    """The settings; the few held-out prompts serve as a benchmark too."""
    return [
        *SMALL,
        f"student.model={student}",
        f"sources=[{{path: {prompts}, name: few}}]",
        f"evaluate.benchmarks=[{{name: xstest, source: {{path: {prompts}}}}}]",
    ]


BEFORE_SFT = {"ingest", "disentangle", "demonstrate"}
"""The stages that are finished when SFT starts."""

RUN = "s3://runs/loop"


@pytest.mark.slow
@pytest.mark.longest
@pytest.mark.timeout(4500)
def test_stages_alone_killed_and_stopped_then_the_whole_loop(
    arguments: list[str], tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of single stages on a bucket: SIGKILL while SFT runs, Ctrl-C while an engine starts that DPO's pairs need; the loop
    takes over what they made; a second time there is nothing to do; nothing is left behind."""
    with object_store(monkeypatch) as store:
        stages_alone_killed_and_stopped_then_the_whole_loop(arguments, tmp_path, Leftovers(short_folder), store)


def stages_alone_killed_and_stopped_then_the_whole_loop(
    arguments: list[str], tmp_path: Path, left: Leftovers, store: ObjectStore
) -> None:
    """The test, on a bucket."""
    target = tmp_path / "run"
    where = ("--run-dir", RUN, *arguments)

    def finished() -> dict[str, float]:
        """The finished stages, in a copy of the bucket that the checks read."""
        store.download("runs/loop", target)
        return finished_stages(target)

    def go_on() -> str:
        """Run the loop to its end: it begins with what is done and leaves that alone."""
        done_before = finished()
        ended = run(*where, environment=left.environment)
        assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
        assert all(f"{key}: done earlier" in ended.stdout for key in done_before)
        assert done_before.items() <= finished().items()
        return ended.stdout

    sft, dpo = (command(*where, job=job) for job in ("sft", "dpo"))
    log = tmp_path / "ended.log"
    assert end_after(sft, left.environment, log, "sft: started", 3, signal.SIGKILL) == -signal.SIGKILL
    assert set(finished()) == BEFORE_SFT
    # At once, while Ray's agents still live; who is killed removes no files, and this command has to.
    assert end_after(dpo, left.environment, log, "Loading safetensors", 1, signal.SIGINT) == 130
    assert set(finished()) == BEFORE_SFT | {"sft"}
    left.expect_none()
    printed = go_on()
    assert "report:" in printed
    assert "round 1: " in printed
    check_outputs(target)
    page = (target / "report.html").read_bytes()
    written = write_report(RUN)
    assert store.objects["runs/loop/report.html"] == page  # the run wrote what anybody can write again
    assert written.runs["local"].finished

    start = time.monotonic()
    again = go_on()
    assert "started" not in again.replace("ray: started", "")
    assert time.monotonic() - start < 120
    left.expect_none()
    assert not [place for place in store.objects if "in_flight" in place or place.endswith((".tmp", "lease.json"))]


def end_after(
    arguments: list[str], environment: Mapping[str, str], log: Path, words: str, seconds: float, how: signal.Signals
) -> int:
    """Run a command and send it a signal some seconds after it has said these words; its exit code."""
    with log.open("w") as stream:
        driver = subprocess.Popen(arguments, stdout=stream, stderr=stream, cwd=REPOSITORY, env=environment)
        while words not in log.read_text():
            assert driver.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
        time.sleep(seconds)
        driver.send_signal(how)
        return driver.wait(timeout=60)


def check_outputs(target: Path) -> None:
    """Every stage has its manifest and rows of its declared schema; the bad rows are in the errors table."""
    kinds = {
        "ingest": records.Prompt,
        "disentangle": records.Disentanglement,
        "demonstrate": records.Demonstration,
        "sft": records.TrainingStep,
        "base/answers": records.Rollout,
        "policy-0/judge": records.Judgement,
        "policy-1/evaluate": records.Metric,
        "round-1/rollout": records.Rollout,
        "round-1/judge": records.Judgement,
        "round-1/pair": records.PreferencePair,
        "round-1/dpo": records.TrainingStep,
    }
    for stage, kind in kinds.items():
        done = [path.parent for path in target.glob(f"stages/{stage}/*/manifest.json")]
        assert len(done) == 1, stage
        manifest = json.loads((done[0] / "manifest.json").read_text())
        tables = [pq.read_table(path) for path in (done[0] / "data").glob("*.parquet")]
        assert tables, stage
        assert all(table.schema.equals(schema_of(kind)) for table in tables), stage
        assert sum(table.num_rows for table in tables) == manifest["rows_out"], stage
        if manifest["chat"]:
            assert "rules" in manifest["chat"]
    errors = [
        row for path in target.glob("stages/ingest/*/errors/*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    assert {row["reason"] for row in errors} == {"image_missing", "not_json"}
    rollouts = [
        row
        for path in target.glob("stages/round-1/rollout/*/data/*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    judged = [
        row for path in target.glob("stages/round-1/judge/*/data/*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    assert len(rollouts) == len(judged) == 2 * 12
    assert {row["rollout_id"] for row in rollouts} == {row["rollout_id"] for row in judged}
    measured = list(target.glob("stages/*/benchmarks/xstest/metrics/*/manifest.json"))
    assert {path.relative_to(target / "stages").parts[0] for path in measured} >= {"base", "policy-0"}
    changes = json.loads((target / "metrics.json").read_text())["comparisons"]
    assert ("base", "policy-0") in {(row["before"], row["after"]) for row in changes}
    page = (target / "report.html").read_text()
    assert page.count('<svg class="change') == sum(row["difference"]["n"] > 0 for row in changes)
    assert "benchmark: xstest" in page
    assert "rules" in page
    assert "policy-1" in page
    assert json.loads((target / "policy.json").read_text())["name"] in ("policy-0", "policy-1")
    assert "| preference pairs, round 1 |" in (target / "model_card.md").read_text()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["student.model=no/such/folder"], ["student.model", "no/such/folder"]),
        (["sources=[{path: no/such/file.jsonl}]"], ["no/such/file.jsonl", "no such file"]),
        (["templates=no/such/folder"], ["templates", "no/such/folder", "does not exist"]),
        (["rollout.samples=3"], ["rollout.samples", "not a key"]),
    ],
)
def test_a_wrong_setting_costs_seconds(tmp_path: Path, changed: list[str], words: list[str]) -> None:
    """Exit code 2 and one paragraph, before Ray or torch are imported."""
    model = a_student(tmp_path / "model")
    start = time.monotonic()
    done = run("--run-dir", str(tmp_path / "run"), f"student.model={model}", *changed, timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert time.monotonic() - start < 20
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_directory_of_another_run_is_refused(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: other\n")
    done = run("--run-dir", str(tmp_path), *arguments, timeout=60)
    assert done.returncode == 2
    assert "belongs to the run 'other'" in done.stderr


@pytest.mark.slow
def test_help_teaches() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "dream_ray.cli", "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "120"},
    )
    assert shown.returncode == 0
    for word in ("run", "report", "compare", "student", "demo-prompts"):
        assert word in shown.stdout
