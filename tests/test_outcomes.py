import pyarrow.parquet as pq
import pytest

from dream_ray.outcomes import outcome_schema, outcome_table, require_same_rows
from dream_ray.records import Demonstration, ErrorRow, Risk, from_row

GOOD = Demonstration("p1", "an answer", Risk.BENIGN, 1, 2)
BAD = ErrorRow("demonstrate", "p2", "timeout", "", 3)


def test_each_row_is_a_record_or_an_error_and_survives_parquet(tmp_path) -> None:
    table = outcome_table(Demonstration, [GOOD, BAD])
    pq.write_table(table, tmp_path / "t.parquet")
    read = pq.read_table(tmp_path / "t.parquet")
    assert read.schema == outcome_schema(Demonstration)
    first, second = read.to_pylist()
    assert (from_row(Demonstration, first["record"]), first["error"]) == (GOOD, None)
    assert (second["record"], from_row(ErrorRow, second["error"])) == (None, BAD)
    assert outcome_table(Demonstration, []).schema == outcome_schema(Demonstration)


def test_other_values_and_empty_fields_are_refused() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        outcome_table(Demonstration, [GOOD, None])
    with pytest.raises(ValueError, match="answer"):
        outcome_table(Demonstration, [Demonstration("p1", None, Risk.BENIGN, 1, 2)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expected", "found", "message"),
    [
        (["a", "b"], ["a"], r"1 row\(s\) lost \(b\)"),
        (["a"], ["a", "a"], r"1 too many \(a\)"),
        (["a", "b"], ["a", "c"], r"1 row\(s\) lost \(b\), 1 too many \(c\)"),
        (["a", "a"], ["a", "a"], r"1 id\(s\) doubled in the input \(a\)"),
    ],
)
def test_lost_and_doubled_rows_are_loud(expected: list[str], found: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_same_rows("stage", expected, found)


def test_same_rows_in_any_order_pass() -> None:
    require_same_rows("stage", ["a", "b"], ["b", "a"])
