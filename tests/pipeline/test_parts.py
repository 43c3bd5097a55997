"""What a pass counts and how it ends, without Ray."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dream_ray.outcomes import outcome_table
from dream_ray.pipeline.data_stages import labelled
from dream_ray.pipeline.parts import BudgetReached, EndpointSilent, StageFailed, Tally, Target, _Writer, settle, writers
from dream_ray.pipeline.store import RunStore
from dream_ray.records import Disentanglement, ErrorRow, Prompt


def targets_of(tmp_path: Path) -> list[Target]:
    store = RunStore(str(tmp_path))
    refs = [store.ref(key, "0" * 64) for key in ("copy", "disentangle")]
    return [
        Target(refs[0], Prompt, "job", "prompt", "copy"),
        Target(refs[1], Disentanglement, "job", "record", "disentangle"),
    ]


def test_unasked_rows_are_no_failures_and_all_tokens_count(tmp_path: Path) -> None:
    target = targets_of(tmp_path)[1]
    outcomes = [
        Disentanglement("a", (), 0, 0, 100, 10, 64),
        ErrorRow("disentangle", "b", "no_list", "", 2, "0123456789ab", 200, 20, 128),
        ErrorRow("disentangle", "c", "budget_reached", "", 0, "ba9876543210", 7, 1, 0),
        ErrorRow("ingest", "d", "image_missing", "", 1),
    ]
    block: pa.Table = labelled(outcome_table(Disentanglement, outcomes), "job", "train-00-000000")
    [counted] = _Writer([target])(block).to_pylist()
    assert json.loads(counted["counted"]) == {
        "key": "disentangle",
        "rows_out": 1,
        "failed": 1,
        "failures": {"no_list": 1},
        "first": ["b: no_list"],
        "unasked": 1,
        "prompt_tokens": 307,
        "completion_tokens": 31,
        "cached_tokens": 192,
    }
    errors = pq.read_table(Path(target.ref.errors_uri) / "train-00-000000.parquet").to_pylist()
    assert [(row["row_id"], row["fingerprint"]) for row in errors] == [("b", "0123456789ab"), ("c", "ba9876543210")]


def test_a_spent_budget_stops_the_stage_but_not_the_one_beside_it(tmp_path: Path) -> None:
    targets = targets_of(tmp_path)
    tallies = {"copy": Tally(), "disentangle": Tally(unasked=25, prompt_tokens=9)}
    with pytest.raises(BudgetReached, match="disentangle: 25 of 25 rows") as stopped:
        settle(targets, tallies, 0.05)
    assert stopped.value.finished == {"copy": tallies["copy"]}
    settle(targets, {"copy": Tally(), "disentangle": Tally()}, 0.05)


def test_too_many_failures_are_told_before_the_budget(tmp_path: Path) -> None:
    failing = Tally(failed=3, unasked=2)
    failing.failures.update({"no_list": 3})
    with pytest.raises(StageFailed, match="3 of 3 rows failed"):
        settle(targets_of(tmp_path), {"copy": Tally(), "disentangle": failing}, 0.05)


def test_a_silent_endpoint_is_told_before_the_time_outs_that_showed_it(tmp_path: Path) -> None:
    targets = targets_of(tmp_path)
    outcomes = [
        ErrorRow("disentangle", "a", "timeout", "image_pass: no reply", 1),
        ErrorRow("disentangle", "b", "endpoint_silent", "image_pass: http://here/v1 let 3 deadlines pass", 0),
    ]
    block: pa.Table = labelled(outcome_table(Disentanglement, outcomes), "job", "train-00-000000")
    [counted] = _Writer([targets[1]])(block).to_pylist()
    silent = Tally()
    silent.add(json.loads(counted["counted"]))
    assert (silent.failed, silent.unasked) == (1, 1)
    with pytest.raises(
        EndpointSilent, match=r"disentangle: 1 of 2 rows.*http://here/v1 let 3.*the same command"
    ) as stopped:
        settle(targets, {"copy": Tally(rows_out=0), "disentangle": silent}, 0.05)
    assert stopped.value.finished.keys() == {"copy"}
    # A stage beside it that met the same silence has no row unasked, and is not done all the same.
    with pytest.raises(EndpointSilent) as stopped:
        settle(targets, {"copy": Tally(failed=1), "disentangle": silent}, 0.05)
    assert stopped.value.finished == {}


def test_a_cluster_that_was_joined_has_as_many_writers_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert writers() == 2
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert writers() is None
