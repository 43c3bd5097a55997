"""dream_ray's own prompt format: one JSON object a line (docs/prompts.md describes it for users).

    {"id": "a-1", "turns": [{"role": "user", "text": "…", "images": ["images/a-1.png"]}], "split": "train",
     "risk": "risky", "risk_origin": "text", "category": "Violence", "twin": "a-2", "answer": null, "image_origin": "drawn",
     "observations": [{"content": "…", "source": "text instruction", "category": "Violence"}]}

Only `id` and `turns` are required; `_PromptRow` has all keys. Images are named relative to the file's folder. `observations`
says that somebody looked: an empty list is a prompt without a risk, an absent one a prompt that nobody has looked at.

Contract: a RawPrompt or a BadRow for every line that is not blank; an unknown key is a BadRow, since it may be a typing error.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dream_ray.config import SourceConfig
from dream_ray.records import Observation, Risk, RiskOrigin, Split
from dream_ray.sources.format import Format, image_at, image_base, source_name
from dream_ray.sources.raw import BadRow, RawPrompt, RawTurn, Row
from dream_ray.sources.tables import parsed
from dream_ray.taxonomy import Category, Source


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _TurnRow(_Row):
    role: Literal["user", "assistant"] = "user"
    text: str = Field(min_length=1)
    images: list[str] = []


class _ObservationRow(_Row):
    content: str = Field(min_length=1)
    source: Source
    category: Category


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
    subset: str | None = None
    group: str | None = None
    options: tuple[str, ...] = ()
    correct_option: str | None = None
    safety_warning: str | None = None
    observations: list[_ObservationRow] | None = None


def _read(source: SourceConfig, tables: Sequence[str]) -> Iterator[Row]:
    name = source_name(source)
    for table in tables:
        base = image_base(source, table)
        for row_id, row in parsed(table, _PromptRow):
            yield row if isinstance(row, BadRow) else _prompt(row, row_id, name, base)


def _prompt(row: _PromptRow, row_id: str, name: str, base: str) -> RawPrompt | BadRow:
    if row.turns[-1].role != "user":
        return BadRow(row_id, "no_question", "the last turn is not the user's, so there is nothing to answer")
    turns = tuple(
        RawTurn(turn.role, turn.text, tuple(image_at(base, image, row.image_origin) for image in turn.images))
        for turn in row.turns
    )
    return RawPrompt(
        name,
        row.id,
        row.split,
        turns,
        risk=row.risk,
        risk_origin=row.risk_origin,
        category=row.category,
        twin_id=row.twin,
        reference_answer=row.answer,
        subset=row.subset,
        group=row.group,
        options=row.options,
        correct_option=row.correct_option,
        safety_warning=row.safety_warning,
        observations=None if row.observations is None else tuple(_observation(item) for item in row.observations),
    )


def _observation(item: _ObservationRow) -> Observation:
    return Observation(item.content, item.source, item.category)


JSONL = Format(
    name="jsonl",
    summary="dream_ray's own: one prompt a line, dialogues, labels and observations included (docs/prompts.md)",
    expects="one or more .jsonl files; image names are relative to the file.",
    tables=("*.jsonl",),
    read=_read,
    observed=True,
)
