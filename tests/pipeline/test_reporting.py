"""What is written from a run directory, and what is never in it."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import ray
from typer.testing import CliRunner

from dream_ray.cli import app
from dream_ray.config import ConfigError
from dream_ray.pipeline.past_run import read_run
from dream_ray.pipeline.reporting import report_data, write_comparison, write_report
from dream_ray.records import Prompt, TrainingStep
from tests.object_store import object_store
from tests.pipeline.run_dirs import MARKS, PER_SPLIT, REFUSED, RunDir


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    RunDir(tmp_path / "one").whole()
    return tmp_path / "one"


def test_no_ray_is_started(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("a report started Ray"))
    write_report(str(run_dir))


def test_page_json_csv_and_card_hold_the_same_numbers(run_dir: Path) -> None:
    written = write_report(str(run_dir))
    page = (run_dir / "report.html").read_text()
    assert written.size == len(page.encode())
    content = json.loads((run_dir / "metrics.json").read_text())
    with (run_dir / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["value"] for row in rows] == [
        "" if metric["value"] is None else str(metric["value"]) for metric in content["metrics"]
    ]
    (safe,) = [
        metric
        for metric in content["metrics"]
        if (metric["policy"], metric["split"], metric["name"], metric["slice"])
        == ("policy-1", "held_out", "safe", "all")
    ]
    assert (safe["value"], safe["n"]) == (0.9, PER_SPLIT)
    card = (run_dir / "model_card.md").read_text()
    for text in (page, card):
        assert "90%" in text
    gaps = {(row["policy"], row["split"], row["slice"]): row for row in content["gaps"]}
    gap = gaps["policy-1", "held_out", "all"]
    assert gap["value"] == pytest.approx(0.9 - 0.2)
    shown = f"{gap['value']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}]"
    assert shown in page
    assert shown in card
    assert content["standing"] == "policy-1"
    assert content["counts"]["preference pairs, round 2"] == 2 * PER_SPLIT
    assert "| preference pairs, round 2 | 20 |" in card


def test_changes_on_benchmarks_are_in_page_json_and_csv(tmp_path: Path) -> None:
    RunDir(tmp_path).whole().benchmark("xstest")
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "metrics.json").read_text())
    with (tmp_path / "comparisons.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    changes = [
        (
            row["from"],
            row["to"],
            row["number"],
            float(row["before"]),
            float(row["after"]),
            int(row["n"]),
            row["verdict"],
        )
        for row in rows
    ]
    assert changes == [
        (item["before"], item["after"], item["name"], item["difference"]["before"], item["difference"]["after"],
         item["difference"]["n"], item["verdict"])
        for item in content["comparisons"]
    ]  # fmt: skip
    assert changes == [
        ("base", "policy-0", "asr_hard", 0.8, 0.24, 50, "better"),
        ("base", "policy-0", "over_refusal", 0.04, 0.18, 50, "worse"),
        ("policy-0", "policy-1", "asr_hard", 12 / 47, 10 / 47, 47, ""),
        ("policy-0", "policy-1", "over_refusal", 9 / 47, 4 / 47, 47, ""),
        ("base", "policy-1", "asr_hard", 40 / 47, 10 / 47, 47, "better"),
        ("base", "policy-1", "over_refusal", 2 / 47, 4 / 47, 47, ""),
    ]
    page = (tmp_path / "report.html").read_text()
    assert page.count('<svg class="change') == len(rows)
    for text in (page, done.output):
        assert "better" in text
        assert "worse" in text
    assert "judge_failures" in done.output
    card = (tmp_path / "model_card.md").read_text()
    assert "| judge_failures, all (xstest) | 0% [0, 4] n=100 | 6% [3, 12] n=100 |" in card
    assert re.search(r"\| asr_hard \(xstest\) \| -64 points \[-\d+, -\d+\] n=47 \(3 left out\) \| better \|", card)
    assert re.search(r"\| over_refusal \(xstest\) \| \+4 points .* \|  \|", card)


def test_answers_on_benchmarks_can_be_browsed(tmp_path: Path) -> None:
    RunDir(tmp_path).whole().benchmark("xstest")
    write_report(str(tmp_path))
    page = (tmp_path / "report.html").read_text()
    found = re.findall(
        r'<details class="sample" data-stage="benchmark: xstest".*?(?=<details class="sample"|</section>)', page, re.S
    )
    assert len(found) == 2 * PER_SPLIT
    for sample in found:
        for policy in ("base", "policy-0", "policy-1"):
            assert f"ANSWER-MARK of {policy} on xstest" in sample
        assert "GRADE-MARK" in sample
        assert "Observations" not in sample
        assert '<img src="data:image/jpeg' in sample
        assert "answers to one prompt differ" in sample
    assert sum('data-verdict="fully|not|unjudged"' in sample for sample in found) == 1
    assert sum('data-verdict="fully|not|partly"' in sample for sample in found) == 2 * PER_SPLIT - 1


def test_policies_that_were_only_measured_are_no_unfinished_run(tmp_path: Path) -> None:
    """What `dream-ray evaluate` leaves: policies that the loop may have named, benchmarks, no stage of the loop."""
    RunDir(tmp_path).benchmark("xstest")
    (tmp_path / "metrics.json").write_text("{}")
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "stands" not in done.output
    page = (tmp_path / "report.html").read_text()
    for words in ("not finished", "Result", "Rounds", "Over the rounds", "Who taught", "One seed"):
        assert words not in page.split("<main>")[1].split("</main>")[0], words
    assert page.count('<svg class="change') == 6
    assert (tmp_path / "metrics.json").read_text() == "{}"
    assert not (tmp_path / "model_card.md").exists()
    assert (tmp_path / "comparisons.csv").read_text().count("\n") == 7


def test_without_benchmarks_nothing_is_said_of_them(run_dir: Path) -> None:
    write_report(str(run_dir))
    assert (run_dir / "comparisons.csv").read_text().count("\n") == 1
    assert "Benchmarks" not in (run_dir / "report.html").read_text()


def test_the_same_directory_gives_the_same_files(run_dir: Path) -> None:
    names = ("report.html", "metrics.json", "metrics.csv", "comparisons.csv", "model_card.md")
    write_report(str(run_dir))
    first = [(run_dir / name).read_bytes() for name in names]
    write_report(str(run_dir))
    assert [(run_dir / name).read_bytes() for name in names] == first


def test_a_moved_directory_keeps_its_pictures(run_dir: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(run_dir, moved)
    write_report(str(moved))
    page = (moved / "report.html").read_text()
    assert page.count('<img src="data:image/jpeg') > 20
    assert "could not be shown" not in page


def test_a_directory_in_a_bucket_gives_the_same_files(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(str(run_dir))
    names = ("report.html", "metrics.json", "metrics.csv", "model_card.md")
    with object_store(monkeypatch) as store:
        store.upload(run_dir, "runs/one")
        for name in names:
            del store.objects[f"runs/one/{name}"]
        assert write_report("s3://runs/one").uri == "s3://runs/one/report.html"
        for name in names:
            assert store.objects[f"runs/one/{name}"] == (run_dir / name).read_bytes()


def test_shares_by_the_source_that_the_teacher_saw(run_dir: Path) -> None:
    write_report(str(run_dir))
    found = {
        (row["policy"], row["slice"]): (row["value"], row["n"])
        for row in json.loads((run_dir / "metrics.json").read_text())["metrics"]
        if row["split"] == "dev" and row["slice"].startswith("text in")
    }
    # Odd numbers stand in the image, 3 was overlooked: 1, 5, 7, 9; even ones in the instruction: 0, 2, 4, 6, 8.
    assert found["policy-0", "text in the image"] == (2 / 4, 4)  # refuses 0 to 6
    assert found["policy-0", "text instruction"] == (4 / 5, 5)


def test_nothing_risky_or_private_is_in_the_card_or_on_the_terminal(run_dir: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(run_dir)])
    assert done.exit_code == 0, done.output
    card = (run_dir / "model_card.md").read_text()
    numbers = (run_dir / "metrics.json").read_text() + (run_dir / "metrics.csv").read_text()
    for mark in MARKS:
        assert mark in (run_dir / "report.html").read_text()
        assert mark not in card + numbers + done.output
    assert "tiny-student" in card
    assert "/somewhere" not in card
    assert str(run_dir) not in card
    assert "report.html (0." in done.output
    assert "90% [60, 98] n=10" in done.output
    assert "policy that stands: policy-1" in done.output


def test_a_half_done_run_says_so(tmp_path: Path) -> None:
    RunDir(tmp_path).whole(rounds=1)
    write_report(str(tmp_path))
    assert "This run is not finished." in (tmp_path / "report.html").read_text()
    assert "not finished" in (tmp_path / "model_card.md").read_text()


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    made = RunDir(tmp_path)
    made.stage("ingest", Prompt, made.prompts)
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "none was evaluated yet" in done.output
    assert "No trained policy has been evaluated yet." in (tmp_path / "report.html").read_text()
    assert "No trained policy has been evaluated yet." in (tmp_path / "model_card.md").read_text()


@pytest.mark.parametrize("command", [["report"], ["compare", "also/nothing"]])
def test_what_is_no_run_ends_with_a_paragraph(command: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*command, str(tmp_path)])
    assert done.exit_code == 2
    assert "is no run directory" in " ".join(done.stderr.split())


def test_a_run_without_a_finished_stage_has_nothing_to_report(tmp_path: Path) -> None:
    RunDir(tmp_path)
    with pytest.raises(ConfigError, match="nothing to report"):
        write_report(str(tmp_path))


def test_runs_are_compared_prompt_by_prompt(run_dir: Path, tmp_path: Path) -> None:
    RunDir(tmp_path / "two", dpo={"beta": 0.3}).whole(refused=REFUSED | {"policy-1": (6, 0)})
    done = CliRunner().invoke(
        app, ["compare", str(run_dir), str(tmp_path / "two"), "--output", str(tmp_path / "c" / "both.html")]
    )
    assert done.exit_code == 0, done.output
    page = (tmp_path / "c" / "both.html").read_text()
    text = " ".join(re.sub("<[^>]*>", " ", page.split("</style>")[1].split("<script>")[0]).split())
    # The first run's policy-1 refuses 9 risky and 2 benign prompts of a split, the second's 6 and 0: all of them its own.
    assert "held_out safe -30 points" in text
    assert re.search(r"held_out safe -30 points -\d+ to \+?-?\d+ 10 0 3 0 0\.25", text)
    assert re.search(r"held_out over-refusal -20 points -\d+ to \+?-?\d+ 10 0 2 0 0\.5", text)
    assert "dpo.beta 0.1 0.3" in text
    assert "dpo.epochs" not in text
    assert "90% [60, 98] n=10" in done.output
    assert "both.html" in done.output
    for mark in MARKS:
        assert mark not in page + done.output


def test_benchmarks_of_runs_stand_side_by_side(tmp_path: Path) -> None:
    for name in ("one", "two"):
        RunDir(tmp_path / name).whole().benchmark("xstest")
    RunDir(tmp_path / "three").whole()
    write_comparison([str(tmp_path / name) for name in ("one", "two", "three")], str(tmp_path / "c.html"))
    text = " ".join(re.sub("<[^>]*>", " ", (tmp_path / "c.html").read_text()).split())
    # Of the standing policies: policy-1, not the base model.
    assert "one judge failed on 6% of 100 answers two judge failed on 6% of 100 answers asr_hard 21% 12" in text
    assert "80% 67" not in text


def test_runs_without_common_prompts_are_not_paired(run_dir: Path, tmp_path: Path) -> None:
    other = RunDir(tmp_path / "two")
    other.prompts = [row.__class__(**{**row.__dict__, "prompt_id": f"other-{row.prompt_id}"}) for row in other.prompts]
    other.whole()
    write_comparison([str(run_dir), str(tmp_path / "two")], str(tmp_path / "c.html"))
    assert "no prompt was evaluated by both runs" in (tmp_path / "c.html").read_text()


def test_folders_of_one_name_are_told_apart(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "b" / "one")
    written = write_comparison([str(run_dir), str(tmp_path / "b" / "one")], str(tmp_path / "c.html"))
    assert list(written.runs) == ["one (1)", "one (2)"]
    assert "None: the runs have the same settings." in (tmp_path / "c.html").read_text()


def test_one_run_is_no_comparison(run_dir: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(run_dir)])
    assert done.exit_code == 2
    assert "needs two or more" in " ".join(done.stderr.split())


def test_a_training_that_ended_early_or_left_rows_out_is_named(tmp_path: Path) -> None:
    run = RunDir(tmp_path).whole(rounds=1)
    before = report_data(read_run(str(tmp_path))).caveats
    extra = {"stopped": "kl = 31 is above dpo.stop.max_kl = 30", "steps": 7, "skipped": {"image_missing": 2}}
    run.stage("round-1/dpo", TrainingStep, [TrainingStep(1, 0.5, "loss", 0.6)], ["round-1/pair"], extra=extra)
    said = [words for words in report_data(read_run(str(tmp_path))).caveats if words not in before]
    assert said == [
        "round-1/dpo was stopped, and its policy has the weights after 7 steps: kl = 31 is above dpo.stop.max_kl = 30.",
        "round-1/dpo left out rows that cannot be learnt from: image_missing x2.",
    ]
