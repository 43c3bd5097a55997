"""dream_ray's own prompt format: one JSON object a line (docs/prompts.md describes it for users).

    {"id": "a-1", "turns": [{"role": "user", "text": "…", "images": ["images/a-1.png"]}], "split": "train",
     "risk": "risky", "risk_origin": "text", "category": "Violence", "twin": "a-2", "answer": null, "image_origin": "drawn"}

Only `id` and `turns` are required. Images are named relative to the file's folder.

Contract: `read` yields a RawPrompt or a BadRow for every line that is not blank and holds one line in memory at a time.
"""

import io
import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dream_ray import files
from dream_ray.config import SourceConfig
from dream_ray.records import Risk, RiskOrigin, Split
from dream_ray.sources.raw import BadRow, RawImage, RawPrompt, RawTurn
from dream_ray.taxonomy import Category


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _TurnRow(_Row):
    role: Literal["user", "assistant"] = "user"
    text: str = Field(min_length=1)
    images: list[str] = []


class _PromptRow(_Row):
    id: str = Field(min_length=1)
    turns: list[_TurnRow] = Field(min_length=1)
    split: Split = Split.TRAIN
    risk: Risk | None = None
    risk_origin: RiskOrigin | None = None
    category: Category | None = None
    twin: str | None = None
    answer: str | None = None
    image_origin: str = "file"


def source_name(source: SourceConfig) -> str:
    """What the prompts' `source` column says: the configured name or the file's stem."""
    return source.name or source.path.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def read(source: SourceConfig) -> Iterator[RawPrompt | BadRow]:
    """The rows of a file. Raises FileNotFoundError where there is no such file."""
    folder = source.path.rsplit("/", 1)[0] if "/" in source.path else "."
    name = source_name(source)
    filesystem, path = files.resolve(source.path)
    with filesystem.open_input_stream(path) as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8", errors="replace"), start=1):
            if line.strip():
                yield _parse(line, f"{name}:{number}", name, folder)


def _parse(line: str, row_id: str, name: str, folder: str) -> RawPrompt | BadRow:
    try:
        row = _PromptRow.model_validate(json.loads(line))
    except json.JSONDecodeError as error:
        return BadRow(row_id, "not_json", f"{error.msg} at column {error.colno}")
    except ValidationError as error:
        return BadRow(row_id, "bad_row", "; ".join(_problem(item) for item in error.errors()))
    if row.turns[-1].role != "user":
        return BadRow(row_id, "no_question", "the last turn is not the user's, so there is nothing to answer")
    turns = tuple(
        RawTurn(turn.role, turn.text, tuple(RawImage(_uri(folder, image), row.image_origin) for image in turn.images))
        for turn in row.turns
    )
    return RawPrompt(name, row.id, row.split, turns, row.risk, row.risk_origin, row.category, row.twin, row.answer)


def _uri(folder: str, image: str) -> str:
    """An image's uri: as written where it is absolute, else below the folder of the prompt file."""
    return image if "://" in image or image.startswith("/") else files.join(folder, image)


def _problem(item: Any) -> str:
    """One validation error without the row's own text, which may be risky."""
    return f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
