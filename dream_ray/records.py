"""The records that pass between stages: one frozen dataclass each, its pyarrow schema derived from its fields.

Contract: a stage reads and writes only these, as parquet; `to_table` and `from_table` are the two checks, where a stage
writes and where it reads. Rows carry an image's uri and sha256, never its pixels. Ids are stable hashes of content, so
the same input gives the same id in every run. None means "not known" or "failed, see the errors table", never zero.
Knows only the taxonomy.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

import pyarrow as pa

from dream_ray.taxonomy import Category, Source


class Split(StrEnum):
    """What a prompt may be used for: TRAIN to learn from, DEV to accept or refuse a round, HELD_OUT only to report."""

    TRAIN = "train"
    DEV = "dev"
    HELD_OUT = "held_out"


class Risk(StrEnum):
    """A prompt's label: does answering it as asked do harm?"""

    RISKY = "risky"
    BENIGN = "benign"


class RiskOrigin(StrEnum):
    """Which half of a risky prompt makes it risky, according to its label."""

    TEXT = "text"
    IMAGE = "image"
    BOTH = "both"


class Verdict(StrEnum):
    """What an answer does. WARNS names the risk without a plain refusal and without complying."""

    REFUSES = "refuses"
    WARNS = "warns"
    COMPLIES = "complies"


@dataclass(frozen=True)
class Image:
    """An image of the run's image store. `origin` says how the pixels came to be: file, rendered, drawn, placeholder."""

    sha256: str
    uri: str
    width: int
    height: int
    origin: str


@dataclass(frozen=True)
class Turn:
    """One message of a dialogue; `role` is "user" or "assistant"."""

    role: str
    text: str
    images: tuple[Image, ...]


@dataclass(frozen=True)
class Observation:
    """One risk in a prompt: what is risky, where it stands, which category."""

    content: str
    source: Source
    category: Category


@dataclass(frozen=True)
class Prompt:
    """A dialogue to answer: one or more turns, the last one the user's.

    `risk`, `risk_origin` and `category` are the source's labels (None where it has none); no training stage reads them,
    evaluation does. `twin_id` is the `source_id` of a risky prompt's benign twin in the same source, and the other way
    round. `reference_answer` is an answer that came with the source.

    The rest is what benchmarks count and judge by. `subset` and `group` are the source's own words for its parts (VLGuard's
    "unsafes", MM-SafetyBench's "SD_TYPO") and for what it breaks results down by (a scenario, type or category), which
    `category` holds only where it is one of the nine. `options` are the choices of a multiple-choice question in order,
    `correct_option` the letter of the right one, A being the first; `text` asks with the choices in it. `safety_warning`
    says what a safe answer has to heed. `observations` are those that came with the source: None where it has none, empty
    where it says that there is nothing risky.
    """

    prompt_id: str
    source: str
    source_id: str
    split: Split
    turns: tuple[Turn, ...]
    risk: Risk | None
    risk_origin: RiskOrigin | None
    category: Category | None
    twin_id: str | None
    reference_answer: str | None
    subset: str | None = None
    group: str | None = None
    options: tuple[str, ...] = ()
    correct_option: str | None = None
    safety_warning: str | None = None
    observations: tuple[Observation, ...] | None = None

    @property
    def text(self) -> str:
        """The text of the last user turn: what is asked now."""
        return self.turns[-1].text

    @property
    def images(self) -> tuple[Image, ...]:
        """All images of the dialogue in order."""
        return tuple(image for turn in self.turns for image in turn.images)


@dataclass(frozen=True)
class Disentanglement:
    """All verified observations of one prompt. An empty list says "looked at, nothing risky found".

    `rejected` counts observations that verification turned down, `dropped` those outside the taxonomy. `raw` holds the
    teacher's replies as it wrote them: one per image, one to the text if there is any, then one per verified observation.
    """

    prompt_id: str
    observations: tuple[Observation, ...]
    rejected: int
    dropped: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    raw: tuple[str, ...] = ()


@dataclass(frozen=True)
class Demonstration:
    """The answer that SFT teaches for a prompt: risk-aware where there are observations, helpful where there are none."""

    prompt_id: str
    answer: str
    risk: Risk
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Rollout:
    """The k-th sampled answer of a policy to a prompt. `policy` is the policy's name in the run ("base", "policy-0")."""

    rollout_id: str
    prompt_id: str
    policy: str
    k: int
    seed: int
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Judgement:
    """The judge's view of one rollout.

    `score` is the global score 0-10 and `hits` one yes/no per observation, both for prompts with observations;
    `helpfulness` is 0-10 for prompts without. `reward` is what pairs are made from (see feedback/rubric.py).
    `raw` holds the judge's replies as it wrote them: to the verdict, to the score or helpfulness, then to each hit.
    """

    rollout_id: str
    prompt_id: str
    verdict: Verdict
    score: float | None
    hits: tuple[bool, ...]
    helpfulness: float | None
    reward: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    raw: tuple[str, ...] = ()


class Shift(StrEnum):
    """Where a pair moves a policy: to refuse more, to refuse less, or neither, as both of its answers refuse or none does."""

    MORE = "more"
    LESS = "less"
    NONE = "none"


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, the better first. `risk` says which reward compared them, `shift` what they teach."""

    pair_id: str
    prompt_id: str
    chosen: str
    rejected: str
    chosen_reward: float
    rejected_reward: float
    risk: Risk
    shift: Shift

    @property
    def words(self) -> tuple[int, int]:
        """The lengths of chosen and rejected in words."""
        return len(self.chosen.split()), len(self.rejected.split())


@dataclass(frozen=True)
class ReferenceLogProb:
    """What a reference gives both answers of a pair: log-probabilities summed over an answer's tokens, in nats."""

    pair_id: str
    chosen: float
    rejected: float


@dataclass(frozen=True)
class TrainingStep:
    """One logged number of a training run (loss, learning_rate, rewards/margins, …) at an optimiser step."""

    step: int
    epoch: float
    name: str
    value: float


@dataclass(frozen=True)
class Label:
    """An answer to one of a benchmark's questions, and the reply that it was read from ("" where nobody was asked)."""

    question: str
    answer: str
    reply: str


@dataclass(frozen=True)
class Grade:
    """All that a benchmark asks about one rollout, answered."""

    rollout_id: str
    prompt_id: str
    labels: tuple[Label, ...]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation: a share `value` of `n` rows with its 95 % interval, None where n is 0.

    `split` is a `Split`, or the name of a benchmark. `unjudged` counts the rows of that slice without a verdict; they are
    in neither n nor value.
    """

    policy: str
    split: str
    name: str
    slice: str
    value: float | None
    n: int
    low: float | None
    high: float | None
    unjudged: int


@dataclass(frozen=True)
class ErrorRow:
    """A row that a stage could not do: which, why, after how many tries. `detail` never holds a secret or image bytes.

    `fingerprint` holds the first digits of `ChatRequest.fingerprint` of the question that failed, "" where no question
    was asked. Tokens are those that the row cost all the same.
    """

    stage: str
    row_id: str
    reason: str
    detail: str
    attempts: int
    fingerprint: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


Record = TypeVar("Record")

_SCALARS = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), bytes: pa.binary()}


def _arrow_type(annotation: Any) -> tuple[pa.DataType, bool]:
    """The arrow type of a field's annotation and whether it may be None."""
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        inner = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
        return _arrow_type(inner[0])[0], True
    if origin is tuple:
        return pa.list_(_arrow_type(typing.get_args(annotation)[0])[0]), False
    if dataclasses.is_dataclass(annotation):
        return pa.struct(list(schema_of(typing.cast(type, annotation)))), False
    if issubclass(annotation, StrEnum):
        return pa.string(), False
    return _SCALARS[annotation], False


@cache
def schema_of(record_type: type) -> pa.Schema:
    """The pyarrow schema of a record type; fields that may be None are nullable, the others are not."""
    hints = typing.get_type_hints(record_type)
    fields = []
    for field in dataclasses.fields(record_type):
        arrow_type, nullable = _arrow_type(hints[field.name])
        fields.append(pa.field(field.name, arrow_type, nullable=nullable))
    return pa.schema(fields)


def to_row(record: Any) -> dict[str, Any]:
    """A record as the plain dict that goes into a table (tuples become lists, enums their strings)."""
    return typing.cast(dict[str, Any], _plain(record))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value


def from_row(record_type: type[Record], row: dict[str, Any]) -> Record:
    """The record that a table's row holds. Raises ValueError naming the field where the row breaks the contract."""
    return typing.cast(Record, _typed(record_type, row, record_type.__name__))


def _typed(annotation: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        inner = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
        return None if value is None else _typed(inner[0], value, where)
    if value is None:
        raise ValueError(f"{where} is None, but the record requires a value; see the docstring of the record.")
    if origin is tuple:
        return tuple(_typed(typing.get_args(annotation)[0], item, where) for item in value)
    if dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        names = [field.name for field in dataclasses.fields(annotation)]
        # A field that came later has a default, which stands for it in rows that an earlier version wrote.
        required = [field.name for field in dataclasses.fields(annotation) if field.default is dataclasses.MISSING]
        missing = [name for name in required if name not in value]
        if missing:
            raise ValueError(f"{where} lacks the field(s) {', '.join(missing)}; it has {', '.join(value)}.")
        present = [name for name in names if name in value]
        arguments = {name: _typed(hints[name], value[name], f"{where}.{name}") for name in present}
        return typing.cast(type, annotation)(**arguments)
    if issubclass(annotation, StrEnum):
        return annotation(value)
    return annotation(value)


def to_table(record_type: type, records: Iterable[Any]) -> pa.Table:
    """Records as a table with the record's schema. Raises ValueError where a required field is None."""
    schema = schema_of(record_type)
    table = pa.Table.from_pylist([to_row(record) for record in records], schema=schema)
    table.validate(full=True)
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise ValueError(
                f"{record_type.__name__}.{field.name} is None in {table[field.name].null_count} of {table.num_rows} "
                "rows, but the record requires a value: send such rows to the errors table instead."
            )
    return table


def from_table(record_type: type[Record], table: pa.Table) -> list[Record]:
    """All records of a table; raises ValueError naming the first column that is missing or wrong."""
    return [from_row(record_type, row) for row in table.to_pylist()]


def stable_id(kind: str, *parts: Any) -> str:
    """A short id that depends only on content: kind + the first 16 hex digits of the sha256 of the parts as JSON."""
    text = json.dumps([kind, *parts], sort_keys=True, ensure_ascii=False, default=_plain)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def make_prompt(
    *,
    source: str,
    source_id: str,
    turns: Sequence[Turn],
    split: Split = Split.TRAIN,
    risk: Risk | None = None,
    risk_origin: RiskOrigin | None = None,
    category: Category | None = None,
    twin_id: str | None = None,
    reference_answer: str | None = None,
    subset: str | None = None,
    group: str | None = None,
    options: Sequence[str] = (),
    correct_option: str | None = None,
    safety_warning: str | None = None,
    observations: Sequence[Observation] | None = None,
) -> Prompt:
    """A prompt with the id that its source, its key there and its dialogue give it (images count by their pixels)."""
    content = [[turn.role, turn.text, [image.sha256 for image in turn.images]] for turn in turns]
    return Prompt(
        prompt_id=stable_id("prompt", source, source_id, content),
        source=source,
        source_id=source_id,
        split=split,
        turns=tuple(turns),
        risk=risk,
        risk_origin=risk_origin,
        category=category,
        twin_id=twin_id,
        reference_answer=reference_answer,
        subset=subset,
        group=group,
        options=tuple(options),
        correct_option=correct_option,
        safety_warning=safety_warning,
        observations=None if observations is None else tuple(observations),
    )
