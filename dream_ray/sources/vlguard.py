"""VLGuard: pictures with one instruction where they are unsafe, a safe and an unsafe instruction where they are safe.

Contract: each instruction is a prompt, in the subset that the paper evaluates it in: safe_safes, safe_unsafes, unsafes. The
two prompts of a safe picture are twins. train.json is read for training, test.json as held out.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from pydantic import Field

from dream_ray.config import SourceConfig
from dream_ray.records import Risk, RiskOrigin, Split
from dream_ray.sources.format import Format, Terms, image_at, image_base, one_turn, stem_of
from dream_ray.sources.labels import category_of
from dream_ray.sources.raw import BadRow, Repair, Row
from dream_ray.sources.tables import Columns, distinct, parsed


class _Instruction(Columns):
    instruction: str | None = None
    safe_instruction: str | None = None
    unsafe_instruction: str | None = None
    response: str


class _VLGuardRow(Columns):
    id: str
    image: str
    safe: bool
    harmful_subcategory: str | None = None
    instructions: list[_Instruction] = Field(alias="instr-resp", min_length=1)


def _read(source: SourceConfig, tables: Sequence[str]) -> Iterator[Row]:
    for table in tables:
        split = Split.HELD_OUT if stem_of(table).startswith("test") else Split.TRAIN
        base = image_base(source, table, "test" if split is Split.HELD_OUT else "train")
        seen: Counter[str] = Counter()
        for row_id, row in parsed(table, _VLGuardRow):
            if isinstance(row, BadRow):
                yield row
                continue
            key = distinct(row.id, seen)
            if key != row.id:
                yield Repair(row_id, "id_doubled")
            yield from _prompts(source, row, key, base, split)


def _prompts(source: SourceConfig, row: _VLGuardRow, key: str, base: str, split: Split) -> Iterator[Row]:
    for item in row.instructions:
        text = item.safe_instruction or item.unsafe_instruction or item.instruction
        if not text or (row.safe and item.instruction):
            yield BadRow(
                key, "bad_row", "a safe picture needs safe_instruction or unsafe_instruction, others instruction"
            )
            continue
        benign = bool(item.safe_instruction)
        yield one_turn(
            source,
            f"{key}/{'safe' if benign else 'unsafe'}",
            text,
            [image_at(base, row.image)],
            split,
            risk=Risk.BENIGN if benign else Risk.RISKY,
            risk_origin=None if benign else RiskOrigin.TEXT if row.safe else RiskOrigin.IMAGE,
            category=category_of(row.harmful_subcategory),
            twin_id=None if not row.safe else f"{key}/{'unsafe' if benign else 'safe'}",
            reference_answer=item.response,
            subset="unsafes" if not row.safe else "safe_safes" if benign else "safe_unsafes",
            group=row.harmful_subcategory,
        )


VLGUARD = Format(
    name="vlguard",
    summary="VLGuard, training and test",
    expects="train.json with the image folder `train`, or test.json with `test`, or both (image_folder names another one).",
    tables=("train.json", "test.json", "data/train.json", "data/test.json"),
    read=_read,
    licence="none stated; treat as research only",
    citation="Zong et al., Safety Fine-Tuning at (Almost) No Cost, ICML 2024 (github.com/ys-zong/VLGuard)",
    terms=Terms.RESTRICTED,
    trains=True,
    counts={"safe_safes": (977, 558, 1535), "safe_unsafes": (977, 558, 1535), "unsafes": (1023, 442, 1465)},
)
