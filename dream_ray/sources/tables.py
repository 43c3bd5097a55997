"""The rows of a file, one at a time: JSON lines, CSV, TSV, parquet, and JSON that is one list or one object.

Contract: `rows` yields (row id, row) for every row of a file on any pyarrow filesystem and holds a few rows in memory at a
time, whatever the file's size. What is no row comes as a `BadRow`. `parsed` checks each against a pydantic model of the
columns that a reader needs. Neither knows what the columns mean.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeVar

import ijson
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from dream_ray import files
from dream_ray.sources.raw import BadRow

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""What `rows` reads, told by the file's name."""

BATCH_ROWS = 16
"""Rows of a parquet file held at once: they may carry pictures of megabytes."""

READ_BYTES = 1 << 20
"""Bytes of a parquet column read at once."""

csv.field_size_limit(10_000_000)  # characters; Python's own limit, 131,072, is less than a long jailbreak text


class Columns(BaseModel):
    """Base of the models that readers check rows with: other columns are let pass."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)


Model = TypeVar("Model", bound=BaseModel)


def parsed(uri: str, model: type[Model]) -> Iterator[tuple[str, Model | BadRow]]:
    """The rows of a file as (row id, model), with a `BadRow` "bad_row" where a row is not what the model says."""
    for row_id, row in rows(uri):
        yield row_id, row if isinstance(row, BadRow) else checked(row, model, row_id)


def checked(row: Any, model: type[Model], row_id: str) -> Model | BadRow:
    """A row as the model, or the `BadRow` that says what it lacks."""
    try:
        return model.model_validate(row)
    except ValidationError as error:
        return BadRow(row_id, "bad_row", "; ".join(problem(item) for item in error.errors()))


def rows(uri: str) -> Iterator[tuple[str, Any]]:
    """The rows of a file as (row id, row or BadRow); the id is the file's name and the row's number or key.

    Raises FileNotFoundError, and ValueError for a file of another kind.
    """
    name = uri.rsplit("/", 1)[-1]
    stem, _, suffix = name.rpartition(".")
    filesystem, path = files.resolve(uri)
    read = {"jsonl": _json_lines, "json": _json, "csv": _csv, "tsv": _tsv, "parquet": _parquet}.get(suffix)
    if read is None:
        raise ValueError(f"{uri} ends in none of {', '.join(SUFFIXES)}, so it is not known how to read it.")
    for key, row in read(filesystem, path):
        row_id = f"{stem}:{key}"
        yield row_id, BadRow(row_id, row.reason, row.detail) if isinstance(row, BadRow) else row


def _text(filesystem: pafs.FileSystem, path: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(filesystem.open_input_stream(path), encoding="utf-8-sig", errors="replace", newline="")


def _json_lines(filesystem: pafs.FileSystem, path: str) -> Iterator[tuple[Any, Any]]:
    with _text(filesystem, path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    yield number, BadRow("", "not_json", f"{error.msg} at column {error.colno}")


def _json(filesystem: pafs.FileSystem, path: str) -> Iterator[tuple[Any, Any]]:
    """The items of a list by number, or those of an object by key."""
    with filesystem.open_input_file(path) as stream:
        head = stream.read(64)
        mark = 3 if head.startswith(b"\xef\xbb\xbf") else 0
        stream.seek(mark)
        items = (
            enumerate(ijson.items(stream, "item", use_float=True), start=1)
            if head[mark:].lstrip().startswith(b"[")
            else ijson.kvitems(stream, "", use_float=True)
        )
        key: Any = "the start"
        try:
            for key, item in items:
                yield key, item
        except ijson.JSONError as error:
            reason = " ".join(str(error).split("\n")[0].split())
            yield f"after {key}", BadRow("", "not_json", f"the file cannot be read on: {reason}")


def _csv(filesystem: pafs.FileSystem, path: str, delimiter: str = ",") -> Iterator[tuple[Any, Any]]:
    with _text(filesystem, path) as stream:
        reader = csv.DictReader(stream, delimiter=delimiter)
        number = 0
        try:
            for number, row in enumerate(reader, start=1):
                if None in row or None in row.values():
                    yield number, BadRow("", "bad_row", f"not the {len(reader.fieldnames or ())} cells of the header")
                else:
                    yield number, row
        except csv.Error as error:
            yield f"after {number}", BadRow("", "not_csv", f"the file cannot be read on: {error}")


def _tsv(filesystem: pafs.FileSystem, path: str) -> Iterator[tuple[Any, Any]]:
    return _csv(filesystem, path, "\t")


def _parquet(filesystem: pafs.FileSystem, path: str) -> Iterator[tuple[Any, Any]]:
    number = 0
    with filesystem.open_input_file(path) as stream:
        # Without these Arrow reads ahead to the end and holds the whole file, pictures and all.
        file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=READ_BYTES)
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def problem(item: Any) -> str:
    """One validation error of pydantic without the row's own text, which may be risky."""
    return f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"


def distinct(row_id: str, seen: Counter[str]) -> str:
    """The id of a row, with a number behind it where `seen` of the same table has it already; `seen` counts it."""
    seen[row_id] += 1
    return row_id if seen[row_id] == 1 else f"{row_id}#{seen[row_id]}"
