"""What a stage's actor hands back: for each input row a record or an error, never both, never neither.

Contract: a table of outcomes has two nullable struct columns, `record` (the stage's record) and `error` (an
`ErrorRow`); the pipeline splits it into data and errors. `require_same_rows` makes a lost or doubled row loud. Knows
only records.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dream_ray.records import ErrorRow, schema_of, to_row, to_table


def struct_of(record_type: type) -> pa.StructType:
    """A record type as the arrow type of a nested column."""
    return pa.struct(list(schema_of(record_type)))


def outcome_schema(record_type: type) -> pa.Schema:
    """The columns of an outcome table: `record` and `error`, one of them null in each row."""
    return pa.schema([pa.field("record", struct_of(record_type)), pa.field("error", struct_of(ErrorRow))])


def outcome_table(record_type: type, outcomes: Sequence[Any]) -> pa.Table:
    """Outcomes, each a `record_type` or an `ErrorRow`, as a table in the same order.

    Raises TypeError for any other value, and ValueError where a record lacks a required field.
    """
    for outcome in outcomes:
        if not isinstance(outcome, record_type | ErrorRow):
            raise TypeError(
                f"An outcome is a {type(outcome).__name__}, but a stage's row ends as {record_type.__name__} or as "
                "ErrorRow with a reason. Return one of the two for every input row."
            )
    # Arrow does not check required fields inside a struct; as columns of their own they are checked.
    to_table(record_type, [outcome for outcome in outcomes if not isinstance(outcome, ErrorRow)])
    to_table(ErrorRow, [outcome for outcome in outcomes if isinstance(outcome, ErrorRow)])
    rows = [
        {"record": None, "error": to_row(outcome)}
        if isinstance(outcome, ErrorRow)
        else {"record": to_row(outcome), "error": None}
        for outcome in outcomes
    ]
    return pa.Table.from_pylist(rows, schema=outcome_schema(record_type))


def require_same_rows(stage: str, expected: Sequence[str], found: Sequence[str]) -> None:
    """Raise ValueError unless `found` holds each id of `expected` exactly once and no other."""
    wanted, got = Counter(expected), Counter(found)
    lost, extra = wanted - got, got - wanted
    doubled = [row_id for row_id, count in wanted.items() if count > 1]
    if lost or extra or doubled:
        raise ValueError(
            f"{stage}: {lost.total()} row(s) lost ({_some(lost)}), {extra.total()} too many ({_some(extra)}), "
            f"{len(doubled)} id(s) doubled in the input ({_some(doubled)}). Every input row must come out once, "
            "as a record or as an error; look for the stage that wrote the same id twice, or code "
            "that filters rows without an error row."
        )


def _some(ids: Any) -> str:
    return ", ".join(list(ids)[:3]) or "-"
