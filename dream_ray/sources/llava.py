"""Conversations in LLaVA format, and in it the annotations released with DREAM.

`{"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt", "value": "…"}]}`

Contract: `llava` keeps a conversation whole: all turns up to the last question, the answer to it as reference. `dream` takes
each of a picture's questions as a prompt of its own, as VLGuard means them, with its `observe` list normalised to the
taxonomy; every irregularity of the release is mended or left out, and told as a `Repair`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from pydantic import Field

from dream_ray.config import SourceConfig
from dream_ray.records import Observation, Risk, RiskOrigin, Split
from dream_ray.sources.format import Format, Terms, image_at, image_base, one_turn, source_name
from dream_ray.sources.labels import category_of
from dream_ray.sources.raw import BadRow, RawImage, RawPrompt, RawTurn, Repair, Row
from dream_ray.sources.tables import Columns, distinct, parsed
from dream_ray.taxonomy import Source, normalise_category, normalise_source

MARK = "<image>"
"""Where a picture stands in a message."""

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class _Observed(Columns):
    malicious_content: str
    source: str
    risk_category: str


class _Message(Columns):
    speaker: str = Field(alias="from")
    value: str
    safe: bool | None = None
    observe: list[_Observed] | None = None


class _Conversation(Columns):
    id: str | None = None
    image: str | list[str] | None = None
    conversations: list[_Message] = Field(min_length=1)


class _DreamRow(_Conversation):
    id: str
    image: str
    safe: bool
    harmful_subcategory: str | None = None


def _read_llava(source: SourceConfig, tables: Sequence[str]) -> Iterator[Row]:
    for table in tables:
        base = image_base(source, table)
        for row_id, row in parsed(table, _Conversation):
            yield row if isinstance(row, BadRow) else _dialogue(source, row, row_id, base)


def _dialogue(source: SourceConfig, row: _Conversation, row_id: str, base: str) -> RawPrompt | BadRow:
    names = [row.image] if isinstance(row.image, str) else list(row.image or [])
    turns, answer = [], None
    for message in row.conversations:
        role = _ROLES.get(message.speaker)
        if role is None:
            return BadRow(row_id, "bad_row", "a message is from neither human nor gpt")
        marks = message.value.count(MARK)
        images, names = tuple(image_at(base, name) for name in names[:marks]), names[marks:]
        if len(images) < marks:
            return BadRow(row_id, "image_count", f"more {MARK} marks than images")
        turns.append(RawTurn(role, message.value.replace(MARK, "").strip(), images))
    if names:
        return BadRow(row_id, "image_count", f"more images than {MARK} marks")
    if turns[-1].role == "assistant":
        answer = turns.pop().text
    if not turns or turns[-1].role != "user":
        return BadRow(row_id, "no_question", "no human message before the last answer")
    return RawPrompt(source_name(source), row.id or row_id, Split.TRAIN, tuple(turns), reference_answer=answer)


def _read_dream(source: SourceConfig, tables: Sequence[str]) -> Iterator[Row]:
    for table in tables:
        base = image_base(source, table, "VLGuard/train", "train")
        seen: Counter[str] = Counter()
        for row_id, row in parsed(table, _DreamRow):
            if isinstance(row, BadRow):
                yield row
                continue
            key = distinct(row.id, seen)
            if key != row.id:
                yield Repair(row_id, "id_doubled")
            yield from _questions(source, row, key, image_at(base, row.image.removeprefix("VLGuard/train/")))


def _questions(source: SourceConfig, row: _DreamRow, key: str, image: RawImage) -> Iterator[Row]:
    """The prompts of a picture: one where it is unsafe, a safe and an unsafe one where it is safe."""
    pairs = list(pairwise(row.conversations))[::2]
    if len(row.conversations) % 2 or any(human.safe is None for human, _ in pairs):
        yield BadRow(key, "bad_row", "not pairs of a human message with a `safe` label and an answer")
        return
    for human, gpt in pairs:
        text = human.value.replace(MARK, "").strip()
        kind = "safe" if human.safe else "unsafe"
        row_id = f"{key}/{kind}"
        answer: str | None = gpt.value
        observations: tuple[Observation, ...] | None = ()
        if human.safe and gpt.observe is not None:
            # The release annotated the wrong one of the two questions; its answer warns of a harmless request.
            yield from (Repair(row_id, "observation_of_a_safe_question_left_out") for _ in gpt.observe)
            yield Repair(row_id, "answer_that_warns_of_a_safe_question_left_out")
            answer = None
        elif not human.safe:
            mended = [_observation(item, text) for item in gpt.observe or []]
            yield from (Repair(row_id, reason) for _, reasons in mended for reason in reasons)
            observations = tuple(item for item, _ in mended if item is not None) or None
            if observations is None:
                yield Repair(row_id, "risky_question_without_observation")
        yield one_turn(
            source,
            row_id,
            text,
            [image],
            Split.TRAIN,
            risk=Risk.BENIGN if human.safe else Risk.RISKY,
            risk_origin=None if human.safe else RiskOrigin.TEXT if row.safe else RiskOrigin.IMAGE,
            category=category_of(row.harmful_subcategory),
            twin_id=None if not row.safe else f"{key}/{'unsafe' if human.safe else 'safe'}",
            reference_answer=answer,
            subset="unsafes" if not row.safe else f"safe_{kind}s",
            group=row.harmful_subcategory,
            observations=observations,
        )


_PREFIX = re.compile(r"^(image content|text in the image|text instructions?)\s*:\s*", re.IGNORECASE)


def _observation(item: _Observed, text: str) -> tuple[Observation | None, list[str]]:
    """An observation in the words of the taxonomy, None where it has no place there, and what was mended."""
    mended = []
    where = normalise_source(item.source)
    if where is None and (where := normalise_source(item.source.split(":")[0])):
        mended.append("source_respelt")
    category = normalise_category(item.risk_category)
    if where is None or category is None:
        return None, ["observation_outside_the_taxonomy_left_out"]
    if category.value.lower() != item.risk_category.strip().lower():
        mended.append(f"category_{item.risk_category.strip().lower()}_to_{category.value.lower().replace(' ', '_')}")
    content = _PREFIX.sub("", item.malicious_content.strip())
    if content != item.malicious_content.strip():
        mended.append("content_prefix_cut")
    if where is Source.TEXT_INSTRUCTION and normalise_category(content) is not None:
        # Nearly all other text items quote the whole instruction.
        content = text
        mended.append("content_was_a_category_now_the_instruction")
    return Observation(content, where, category), mended


LLAVA = Format(
    name="llava",
    summary="conversations in LLaVA format, kept whole",
    expects="one or more JSON or JSON-lines files of conversations; image names relative to the file or to image_folder.",
    tables=("*.json", "*.jsonl"),
    first_only=True,
    read=_read_llava,
)

DREAM = Format(
    name="dream",
    summary="the annotations released with DREAM: VLGuard's training questions with risk-aware answers and observations",
    expects="train_llava_format.json, and VLGuard's training images: its folder `train`, beside the file or as image_folder.",
    tables=("train_llava_format.json", "data/VLGuard/train_llava_format.json"),
    first_only=True,
    read=_read_dream,
    licence="none stated",
    citation="Liu et al., DREAM, NAACL 2025 (github.com/Kizna1ver/DREAM)",
    terms=Terms.RESTRICTED,
    trains=True,
    observed=True,
    counts={"safe_safes": (977,), "safe_unsafes": (977,), "unsafes": (1023,)},
)
