"""Which parts a later attempt takes over, and that a pass over finished parts counts what an undisturbed one does."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dream_ray import files
from dream_ray.outcomes import outcome_table
from dream_ray.pipeline.data_stages import labelled
from dream_ray.pipeline.marks import forget, is_finished, marks_uri, take_over
from dream_ray.pipeline.parts import (
    RowsLost,
    StageFailed,
    Target,
    WorkItem,
    _Writer,
    read_part,
    run_pass,
    write_part,
)
from dream_ray.pipeline.store import RunStore
from dream_ray.records import Disentanglement, ErrorRow

PARTS = ("train-00-000000", "train-00-000001", "train-00-000002")


def target_of(tmp_path: Path, key: str = "disentangle") -> Target:
    ref = RunStore(str(tmp_path)).ref(key, "0" * 64)
    return Target(ref, Disentanglement, "job", "record", "disentangle")


def observed(name: str) -> Disentanglement:
    return Disentanglement(name, (), 0, 0, 10, 1, 0)


def failed(name: str, reason: str = "no_list") -> ErrorRow:
    return ErrorRow("disentangle", name, reason, "", 2, "0123456789ab", 20, 2, 0)


def write(targets: list[Target], part: str, *outcomes: Disentanglement | ErrorRow) -> None:
    """A part as a pass writes it."""
    block: pa.Table = labelled(outcome_table(Disentanglement, outcomes), "job", part)
    _Writer(targets)(block)


def three_parts(target: Target) -> None:
    write([target], PARTS[0], observed("a"), observed("b"))
    write([target], PARTS[1], observed("c"), failed("d"))
    write([target], PARTS[2], failed("e"), failed("f", "timeout"))


def nobody(*arguments: Any) -> Any:
    raise AssertionError("finished parts were read or asked about again")


@pytest.mark.parametrize(
    ("counted", "rows", "errors", "finished"),
    [
        ({"rows_out": 2, "failed": 1}, 2, 1, True),
        ({"rows_out": 2, "failed": 1}, 1, 1, False),  # rewritten since
        ({"rows_out": 2, "failed": 1}, 2, 0, False),  # errors file missing
        ({"rows_out": 2, "failed": 0}, None, 0, False),  # torn
        (None, 2, 0, False),
    ],
)
def test_a_part_is_finished_where_mark_and_files_agree(counted, rows, errors, finished) -> None:
    assert is_finished(counted, rows, errors) is finished


def test_a_pass_over_finished_parts_starts_nothing_and_counts_them(tmp_path: Path) -> None:
    target = target_of(tmp_path)
    three_parts(target)
    items = [WorkItem("job", part, 2) for part in PARTS]
    tally = run_pass("again", items, nobody, nobody, [target], 0.5)["disentangle"]
    assert (tally.rows_out, tally.failed, tally.failures) == (3, 3, {"no_list": 2, "timeout": 1})
    assert (tally.prompt_tokens, tally.completion_tokens) == (90, 9)
    assert tally.first_failures == ["d: no_list", "e: no_list", "f: timeout"]


@pytest.mark.parametrize("damage", ["torn data", "torn errors", "torn mark", "no mark", "balanced", "data gone"])
def test_what_is_not_whole_is_removed_and_done_again(tmp_path: Path, damage: str) -> None:
    target = target_of(tmp_path)
    three_parts(target)
    stage = Path(target.ref.uri)
    data, errors, mark = (
        stage / folder / f"{PARTS[1]}.{suffix}"
        for folder, suffix in (("data", "parquet"), ("errors", "parquet"), ("parts", "json"))
    )
    if damage.startswith("torn"):
        path = {"torn data": data, "torn errors": errors, "torn mark": mark}[damage]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "balanced":
        write_part(target.ref.data_uri, PARTS[1], read_part(target.ref.data_uri, PARTS[1]).slice(0, 0))
    else:
        (mark if damage == "no mark" else data).unlink()
    finished = take_over([target.ref], PARTS)
    assert list(finished) == [PARTS[0], PARTS[2]]
    assert not any(path.exists() for path in (data, errors, mark))
    assert read_part(target.ref.data_uri, PARTS[0]).num_rows == 2


def test_parts_of_another_cut_and_temporary_files_go(tmp_path: Path) -> None:
    target = target_of(tmp_path)
    three_parts(target)
    for folder in ("data", "errors", "parts"):
        (Path(target.ref.uri) / folder / f"{PARTS[0]}.0123.tmp").write_bytes(b"half")
    assert list(take_over([target.ref], PARTS[:1])) == [PARTS[0]]
    left = sorted(path.relative_to(target.ref.uri).as_posix() for path in Path(target.ref.uri).rglob("*.*"))
    assert left == [f"data/{PARTS[0]}.parquet", f"parts/{PARTS[0]}.json"]


def test_a_part_is_finished_only_where_every_stage_of_its_job_has_it(tmp_path: Path) -> None:
    """A driver killed between the files of two stages: the part is sampled and judged again, doubling nothing."""
    first, second = target_of(tmp_path, "answers"), target_of(tmp_path, "judge")
    write([first, second], PARTS[0], observed("a"))
    write([first], PARTS[1], observed("b"))
    assert list(take_over([first.ref, second.ref], PARTS)) == [PARTS[0]]
    assert read_part(first.ref.data_uri, PARTS[1]) is None


def test_rows_that_the_budget_left_out_are_asked_about_next_time(tmp_path: Path) -> None:
    target = target_of(tmp_path)
    write([target], PARTS[0], observed("a"), failed("b", "budget_reached"))
    write([target], PARTS[1], observed("c"), failed("d"))
    assert list(take_over([target.ref], PARTS)) == [PARTS[1]]


def test_too_many_failures_get_another_chance_and_good_parts_stay(tmp_path: Path) -> None:
    target = target_of(tmp_path)
    three_parts(target)
    items = [WorkItem("job", part, 2) for part in PARTS]
    with pytest.raises(StageFailed, match="3 of 6 rows failed"):
        run_pass("again", items, nobody, nobody, [target], 0.05)
    assert list(take_over([target.ref], PARTS)) == [PARTS[0]]


def test_doubled_rows_start_the_stage_afresh(tmp_path: Path) -> None:
    target = target_of(tmp_path)
    write([target], PARTS[0], observed("a"))
    write([target], PARTS[1], observed("a"))
    with pytest.raises(RowsLost, match="2 with 1 distinct"):
        run_pass("again", [WorkItem("job", part, 1) for part in PARTS[:2]], nobody, nobody, [target], 0.05)
    assert files.list_files(marks_uri(target.ref)) == []
    assert take_over([target.ref], PARTS) == {}


def test_another_result_of_a_retried_task_leaves_no_earlier_file(tmp_path: Path) -> None:
    target = target_of(tmp_path)
    write([target], PARTS[0], failed("a"))
    write([target], PARTS[0], observed("a"))
    assert files.list_files(target.ref.errors_uri) == []
    assert take_over([target.ref], PARTS)[PARTS[0]][0]["rows_out"] == 1


def test_forgetting_spares_parts_without_failures(tmp_path: Path) -> None:
    target = target_of(tmp_path)
    three_parts(target)
    forget(target.ref, failed_only=True)
    assert [Path(path).stem for path in files.list_files(marks_uri(target.ref))] == [PARTS[0]]
