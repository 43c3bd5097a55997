"""Which parts of a half-done stage are finished: the mark that a pass leaves beside each, and what a later attempt takes over.

    <stage>/parts/<part>.json    {"rows_out": 24, "failed": 1, "failures": {"timeout": 1}, …}

Contract: a part's files are written whole or not at all, and its mark after them. A part counts as finished where every
stage that its job writes to has a readable mark of it and files with exactly the rows that the mark counts; so a torn file,
or one that a balancing step has rewritten since, is redone. What else a killed attempt left is removed, temporary files
too. A mark holds what the pass counted, so that the manifest of a resumed stage counts what that of an undisturbed one does.
Knows nothing of Ray.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dream_ray import files
from dream_ray.pipeline.store import StageRef

READERS = 16
"""Threads that read footers and marks: of thousands of small files on an object store each takes tens of milliseconds."""

Counted = dict[str, Any]
"""What a pass counted of one part for one stage; `rows_out` and `failed` are the rows of its two files."""


def marks_uri(ref: StageRef) -> str:
    """The folder of a stage's marks."""
    return files.join(ref.uri, "parts")


def write_mark(ref: StageRef, part: str, counted: Counted) -> None:
    """Say that a part's files are written; call it after that."""
    files.write_atomic(files.join(marks_uri(ref), f"{part}.json"), json.dumps(counted).encode())


def take_over(refs: Sequence[StageRef], parts: Iterable[str]) -> dict[str, list[Counted]]:
    """What was counted of each finished part of a job, one entry a stage; all other files of these stages are removed.

    `refs` are the stages that the job writes to, `parts` its work items.
    """
    known = set(parts)
    marks = [_finished(ref) for ref in refs]
    finished = {part: [mark[part] for mark in marks] for part in sorted(known) if all(part in mark for mark in marks)}
    for ref in refs:
        _sweep(ref, finished)
    return finished


def forget(ref: StageRef, failed_only: bool) -> None:
    """Remove the marks of a stage, or of its parts with failed rows only, so that the next attempt does them again."""
    for part, counted in _read_marks(ref).items():
        if not failed_only or counted is None or counted["failed"]:
            files.delete_file(files.join(marks_uri(ref), f"{part}.json"))


def is_finished(counted: Counted | None, rows: int | None, errors: int | None) -> bool:
    """True where a part's files hold what its mark counted; None stands for a mark or file that is torn."""
    return counted is not None and (rows, errors) == (counted["rows_out"], counted["failed"])


def _finished(ref: StageRef) -> Mapping[str, Counted]:
    """The marks of a stage that its files agree with."""
    marks = _read_marks(ref)
    rows, errors = (_rows(folder, marks) for folder in (ref.data_uri, ref.errors_uri))
    return {
        part: counted
        for part, counted in marks.items()
        if counted is not None and is_finished(counted, rows[part], errors[part])
    }


def _read_marks(ref: StageRef) -> dict[str, Counted | None]:
    """All marks of a stage, None for a torn one."""
    parts = [_stem(path) for path in files.list_files(marks_uri(ref), ".json")]

    def read(part: str) -> Counted | None:
        try:
            found = json.loads(files.read_bytes(files.join(marks_uri(ref), f"{part}.json")))
        except ValueError:
            return None
        return found if isinstance(found, dict) and {"rows_out", "failed"} <= found.keys() else None

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(parts, pool.map(read, parts), strict=True))


def _rows(folder_uri: str, parts: Iterable[str]) -> dict[str, int | None]:
    """The rows of each part from its file's footer: 0 without a file, None for a file that is no parquet."""
    filesystem = files.resolve(folder_uri)[0]
    paths = {_stem(path): path for path in files.list_files(folder_uri, ".parquet")}

    def read(part: str) -> int | None:
        if part not in paths:
            return 0
        try:
            return int(pq.read_metadata(paths[part], filesystem=filesystem).num_rows)
        except pa.ArrowInvalid:
            return None

    wanted = list(parts)
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(wanted, pool.map(read, wanted), strict=True))


def _sweep(ref: StageRef, keep: Mapping[str, Any]) -> None:
    for folder, suffix in ((ref.data_uri, ".parquet"), (ref.errors_uri, ".parquet"), (marks_uri(ref), ".json")):
        for path in files.list_files(folder):
            name = path.rsplit("/", 1)[1]
            if not (name.endswith(suffix) and name.removesuffix(suffix) in keep):
                files.delete_file(files.join(folder, name))


def _stem(path: str) -> str:
    return path.rsplit("/", 1)[1].rsplit(".", 1)[0]
