"""Preference sets: SPA-VL and both releases of BeaverTails-V.

Contract: each question is a prompt; the answer that the set prefers, where it calls that answer safe, is the reference
answer. The questions carry no label of their own, so `risk` is None (SPA-VL's test questions say harm or help). Two
schemas go by the name of BeaverTails-V: the columns of each row decide.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from dream_ray.config import SourceConfig
from dream_ray.records import Risk, Split
from dream_ray.sources.format import Format, Terms, folder_of, image_in, one_turn, stem_of
from dream_ray.sources.labels import category_of
from dream_ray.sources.raw import BadRow, Row
from dream_ray.sources.tables import Columns, parsed

_SPLITS = {"train": Split.TRAIN, "val": Split.DEV, "test": Split.HELD_OUT, "eval": Split.HELD_OUT, "harm": Split.HELD_OUT,
           "help": Split.HELD_OUT}  # fmt: skip
"""By how the file's name begins."""


def _split_of(table: str) -> Split:
    return next((split for start, split in _SPLITS.items() if stem_of(table).startswith(start)), Split.TRAIN)


def _row_key(row_id: str, table: str, tables: Sequence[str]) -> str:
    """What names a row of a set without ids: file and number, the folder too where files of one name lie in several."""
    return row_id if len(tables) == 1 else f"{folder_of(table).rsplit('/', 1)[-1]}/{row_id}"


class _SpaRow(Columns):
    id: str | None = None
    image: Any
    question: str
    chosen: str | None = None
    class1: str | None = None
    class2: str | None = None
    class3: str | None = None


def _read_spa(source: SourceConfig, tables: Sequence[str]) -> Iterator[Row]:
    for table in tables:
        base, stem = source.image_folder or folder_of(table), stem_of(table)
        risk = Risk.RISKY if "harm" in stem else Risk.BENIGN if "help" in stem else None
        for row_id, row in parsed(table, _SpaRow):
            if isinstance(row, BadRow):
                yield row
                continue
            try:
                image = image_in(row.image, base, row_id)
            except ValueError as error:
                yield BadRow(row_id, "bad_row", str(error))
                continue
            classes = [label for label in (row.class3, row.class2, row.class1) if label]
            yield one_turn(
                source,
                row.id or _row_key(row_id, table, tables),
                row.question,
                [image],
                _split_of(table),
                risk=risk,
                category=next((found for label in classes if (found := category_of(label))), None),
                reference_answer=row.chosen,
                subset="harm" if risk is Risk.RISKY else "help" if risk is Risk.BENIGN else stem.split("-")[0],
                group=row.class1,
            )


class _BeaverRow(Columns):
    question: str
    image: Any
    category: str
    # saferlhf-v/BeaverTails-V
    response_1: str | None = None
    response_2: str | None = None
    is_response_1_safe: str | None = None
    is_response_2_safe: str | None = None
    safer_response_id: str | None = None
    # PKU-Alignment/BeaverTails-V
    response: str | None = None
    is_response_safe: Literal["yes", "no"] | bool | None = None

    def preferred(self) -> str | None:
        """The safer answer, where the set calls it safe. Raises ValueError where a row is of neither schema."""
        if self.response_1 is not None and self.response_2 is not None:
            first = str(self.safer_response_id).strip().endswith("1")
            answer = self.response_1 if first else self.response_2
            safe: object = self.is_response_1_safe if first else self.is_response_2_safe
        elif self.response is not None:
            answer, safe = self.response, self.is_response_safe
        else:
            raise ValueError("neither response_1 and response_2 nor response: the row is of neither known schema")
        return answer if str(safe).strip().lower() in ("yes", "true", "1") else None


def _read_beaver(source: SourceConfig, tables: Sequence[str]) -> Iterator[Row]:
    for table in tables:
        base = source.image_folder or folder_of(table)
        for row_id, row in parsed(table, _BeaverRow):
            if isinstance(row, BadRow):
                yield row
                continue
            try:
                image, answer = image_in(row.image, base, row_id), row.preferred()
            except ValueError as error:
                yield BadRow(row_id, "bad_row", str(error))
                continue
            yield one_turn(
                source,
                _row_key(row_id, table, tables),
                row.question,
                [image],
                _split_of(table),
                category=category_of(row.category),
                reference_answer=answer,
                subset=stem_of(table).split("-")[0],
                group=row.category,
            )


# A snapshot keeps each part in a folder of its own: all of them are read, not the first one alone.
_TABLES = ("*.parquet", "*/*.parquet", "*.json", "*.jsonl")

SPA_VL = Format(
    name="spa_vl",
    summary="SPA-VL: questions about pictures with a preferred and a rejected answer",
    expects="the hub's snapshot (data/train-*, validation/validation-*, test/harm-* and help-*), one of its folders, or the "
    "training JSON with its images.",
    tables=_TABLES,
    first_only=True,
    read=_read_spa,
    licence="CC BY 4.0",
    citation="Zhang et al., SPA-VL, CVPR 2025 (huggingface.co/datasets/sqrti/SPA-VL)",
    counts={"train": (93258,), "validation": (7000,), "harm": (265,), "help": (265,)},
)

BEAVERTAILS_V = Format(
    name="beavertails_v",
    summary="BeaverTails-V, both releases (two rated answers, or one)",
    expects="the parquet files of the hub, one folder a category or one category's files.",
    tables=_TABLES,
    first_only=True,
    read=_read_beaver,
    licence="CC BY-NC 4.0",
    citation="Ji et al., Safe RLHF-V, 2025 (huggingface.co/datasets/saferlhf-v/BeaverTails-V)",
    terms=Terms.RESTRICTED,
    trains=True,
)
