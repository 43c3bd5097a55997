"""Records: what goes into a table comes out again, and a broken contract is loud."""

import dataclasses

import pyarrow as pa
import pytest

from dream_ray import records
from dream_ray.records import (
    Demonstration,
    Disentanglement,
    Image,
    Judgement,
    Observation,
    Prompt,
    Risk,
    RiskOrigin,
    Split,
    Turn,
    Verdict,
    from_row,
    from_table,
    make_prompt,
    schema_of,
    stable_id,
    to_row,
    to_table,
)
from dream_ray.taxonomy import Category, Source, normalise_category, normalise_source


def a_prompt(text: str = "How are you?") -> Prompt:
    image = Image("ab" * 32, "images/ab", 256, 256, "drawn")
    turns = (Turn("user", "Hello", ()), Turn("assistant", "Hi", ()), Turn("user", text, (image,)))
    return make_prompt(
        source="demo",
        source_id="1",
        turns=turns,
        split=Split.DEV,
        risk=Risk.RISKY,
        risk_origin=RiskOrigin.BOTH,
        category=Category.PRIVACY,
        subset="mcqa",
        group="C-3",
        options=("a walk", "a swim"),
        correct_option="B",
        safety_warning="The ice is thin.",
        observations=(Observation("thin ice", Source.IMAGE_CONTENT, Category.PROFESSIONAL_ADVICE),),
    )


def test_round_trip_keeps_every_field() -> None:
    found = Disentanglement(
        "p",
        (Observation("a", Source.TEXT_IN_IMAGE, Category.VIOLENCE),),
        rejected=1,
        dropped=0,
        prompt_tokens=3,
        completion_tokens=2,
    )
    bare = make_prompt(source="demo", source_id="2", turns=[Turn("user", "Hello", ())])
    for record in (a_prompt(), bare, found):
        table = to_table(type(record), [record])
        assert table.schema == schema_of(type(record))
        assert from_table(type(record), table) == [record]


def test_ids_depend_on_content_only() -> None:
    assert a_prompt().prompt_id == a_prompt().prompt_id
    assert a_prompt().prompt_id != a_prompt("Other").prompt_id
    assert stable_id("x", 1, "2") != stable_id("x", "1", 2)


def test_none_in_a_required_field_is_refused() -> None:
    judgement = Judgement("r", "p", Verdict.REFUSES, None, (), 5.0, 0.5, 0, 0)
    assert from_table(Judgement, to_table(Judgement, [judgement])) == [judgement]
    with pytest.raises(ValueError, match=r"Judgement\.reward is None"):
        to_table(Judgement, [dataclasses.replace(judgement, reward=None)])  # type: ignore[arg-type]


def test_reading_names_what_is_missing() -> None:
    row = to_row(a_prompt())
    with pytest.raises(ValueError, match=r"Prompt lacks the field\(s\) turns"):
        from_row(Prompt, {key: value for key, value in row.items() if key != "turns"})
    with pytest.raises(ValueError, match=r"Prompt\.split is None"):
        from_row(Prompt, row | {"split": None})
    with pytest.raises(ValueError, match="lunch"):
        from_row(Prompt, row | {"split": "lunch"})


def test_every_record_type_has_a_schema() -> None:
    types = [
        value
        for value in vars(records).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == records.__name__
    ]
    assert len(types) >= 12
    assert all(isinstance(schema_of(record_type), pa.Schema) for record_type in types)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("Text instructions", Source.TEXT_INSTRUCTION),
        ("text in image", Source.TEXT_IN_IMAGE),
        ("text in the image", Source.TEXT_IN_IMAGE),
        ("IMAGE_CONTENT", Source.IMAGE_CONTENT),
        ("audio", None),
    ],
)
def test_sources_are_normalised(text: str, source: Source | None) -> None:
    assert normalise_source(text) == source


@pytest.mark.parametrize(
    ("text", "category"),
    [("violence", Category.VIOLENCE), ("Health", Category.PROFESSIONAL_ADVICE), ("Weather", None), ("N/A", None)],
)
def test_categories_are_normalised(text: str, category: Category | None) -> None:
    assert normalise_category(text) == category


def test_a_field_that_came_later_may_be_missing_in_older_rows() -> None:
    row = to_row(Demonstration("prompt-1", "answer", Risk.RISKY, 1, 2, 3))
    del row["cached_tokens"]
    assert from_row(Demonstration, row).cached_tokens == 0
