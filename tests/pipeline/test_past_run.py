"""A run read back from its directory: which stages count, which policy stands."""

from pathlib import Path

import pytest

from dream_ray.config import ConfigError
from dream_ray.pipeline.past_run import read_run
from dream_ray.records import Metric, Prompt, Split
from tests.pipeline.run_dirs import PER_SPLIT, REFUSED, RunDir


def test_the_rounds_are_decided_as_the_loop_decides_them(tmp_path: Path) -> None:
    RunDir(tmp_path).whole()
    run = read_run(str(tmp_path))
    assert [(row.candidate, row.taken) for row in run.rounds] == [("policy-1", True), ("policy-2", False)]
    assert run.rounds[1].standing == "policy-1"
    assert run.standing == "policy-1"
    assert run.finished
    assert run.certain
    assert list(run.metrics) == ["base", "policy-0", "policy-1", "policy-2"]


def test_the_limit_on_over_refusal_decides_too(tmp_path: Path) -> None:
    """The gap grows from 0.4 to 0.5, and half of the benign prompts are refused."""
    refused = REFUSED | {"policy-1": (10, 5)}
    for name, settings, taken in (("limited", {"evaluate": {"max_over_refusal": 0.15}}, False), ("not", {}, True)):
        RunDir(tmp_path / name, **settings).whole(refused, rounds=1)
        run = read_run(str(tmp_path / name))
        assert [row.taken for row in run.rounds] == [taken]
        assert run.standing == ("policy-1" if taken else "policy-0")


def test_a_half_done_run_has_the_policy_so_far(tmp_path: Path) -> None:
    half = RunDir(tmp_path)
    half.whole(rounds=0)
    run = read_run(str(tmp_path))
    assert (run.standing, run.finished, run.rounds) == ("policy-0", False, [])


def test_before_the_first_evaluation_no_policy_stands(tmp_path: Path) -> None:
    early = RunDir(tmp_path)
    early.stage("ingest", Prompt, early.prompts)
    run = read_run(str(tmp_path))
    assert (run.standing, run.finished, run.metrics) == (None, False, {})
    assert list(run.verdict_rows()) == []


def test_settings_changed_and_changed_back_show_the_attempt_that_was_last(tmp_path: Path) -> None:
    made = RunDir(tmp_path)
    first = made.stage("ingest", Prompt, made.prompts, setting=1)
    made.stage("ingest", Prompt, made.prompts[:4], setting=2)
    made.store.save_history([first])
    assert [done.ref.fingerprint for done in read_run(str(tmp_path)).stages] == [first.fingerprint]


def test_without_a_history_the_newest_stages_that_belong_together_count(tmp_path: Path) -> None:
    made = RunDir(tmp_path).whole(rounds=0)
    made.stage("ingest", Prompt, made.prompts[:4], setting=2)
    (tmp_path / "history.json").unlink()
    run = read_run(str(tmp_path))
    assert not run.certain
    # Whatever was made from the earlier prompts no longer belongs to the run.
    assert [done.ref.key for done in run.stages] == ["ingest"]


def test_without_a_history_an_undisturbed_run_is_whole(tmp_path: Path) -> None:
    made = RunDir(tmp_path).whole()
    (tmp_path / "history.json").unlink()
    run = read_run(str(tmp_path))
    assert [done.ref.key for done in run.stages] == [ref.key for ref in made.refs]


def test_numbers_of_benchmarks_are_read_too(tmp_path: Path) -> None:
    made = RunDir(tmp_path).whole(rounds=0)
    row = Metric("policy-0", "siuo", "safe", "all", 0.5, 10, 0.2, 0.8, 0)
    made.stage("policy-0/benchmarks/siuo/metrics", Metric, [row])
    run = read_run(str(tmp_path))
    assert row in run.metrics["policy-0"]
    assert run.standing == "policy-0"
    assert run.comparisons == []


def test_changes_between_policies_are_read_too(tmp_path: Path) -> None:
    made = RunDir(tmp_path).whole()
    made.benchmark("xstest")
    run = read_run(str(tmp_path))
    assert [(row.before, row.after, row.name) for row in run.comparisons] == [
        (before, after, name)
        for before, after in (("base", "policy-0"), ("policy-0", "policy-1"), ("base", "policy-1"))
        for name in ("asr_hard", "over_refusal")
    ]
    assert list(run.metrics) == ["base", "policy-0", "policy-1", "policy-2"]


def test_verdict_rows_hold_every_evaluated_prompt_with_all_policies(tmp_path: Path) -> None:
    RunDir(tmp_path).whole(rounds=1)
    rows = list(read_run(str(tmp_path)).verdict_rows())
    assert len(rows) == 2 * 2 * PER_SPLIT
    assert {row.split for row in rows} == {Split.DEV, Split.HELD_OUT}
    assert all(set(row.verdicts) == {"base", "policy-0", "policy-1"} for row in rows)
    overlooked = [row for row in rows if row.risk == "risky" and not row.sources]
    assert len(overlooked) == 2


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run directory: it holds no config.yaml"):
        read_run(str(tmp_path / "nothing"))


def test_settings_of_another_version_are_named(tmp_path: Path) -> None:
    RunDir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text() + "gone: 1\n")
    with pytest.raises(ConfigError, match="gone is nothing that this version knows"):
        read_run(str(tmp_path))
