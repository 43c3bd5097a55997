"""Prompts that a student cannot be given whole: found from texts and sizes, with their length."""

from pathlib import Path

import pytest

from dream_ray.config import ImageConfig, StudentConfig
from dream_ray.outcomes import outcome_table
from dream_ray.records import ErrorRow, Image, Prompt, Turn, make_prompt
from dream_ray.sources.measure import Measure
from tests import families

pytestmark = pytest.mark.slow


def prompt_of(key: str, text: str, *images: Image) -> Prompt:
    return make_prompt(source="mine", source_id=key, turns=[Turn("user", text, images)])


def test_a_prompt_is_refused_with_its_length_and_never_cut(tmp_path: Path) -> None:
    folder = families.build("idefics3", tmp_path / "model")
    measure = Measure(StudentConfig(model=str(folder), max_model_len=64), ImageConfig())
    picture = Image("0" * 64, "nowhere.png", 300, 100, "file")
    frame = (
        len("<|im_start|>") - 11 + len("user\n") + len("\n") + len("assistant\n") + 2
    )  # two more marks, and a byte each
    rows = [
        prompt_of("fits", "a" * (63 - frame)),
        prompt_of("long", "a" * (64 - frame)),
        prompt_of("picture fits", "a" * (63 - frame - 7), picture),  # 4 image tokens and 3 marks around them
        prompt_of("picture", "a" * (63 - frame), picture),
        prompt_of("mark", "Describe <image>."),
        ErrorRow("ingest", "mine:gone", "image_missing", "", 1),
    ]
    found = measure(outcome_table(Prompt, rows)).to_pylist()
    assert [row["record"] and row["record"]["source_id"] for row in found] == [
        "fits",
        None,
        "picture fits",
        None,
        None,
        None,
    ]
    errors = [(row["error"]["row_id"], row["error"]["reason"]) for row in found if row["error"]]
    assert errors == [
        ("mine:long", "prompt_too_long"),
        ("mine:picture", "prompt_too_long"),
        ("mine:mark", "image_mark_in_text"),
        ("mine:gone", "image_missing"),
    ]
    assert found[1]["error"]["detail"] == "64 tokens, image tokens included; student.max_model_len is 64"
    assert found[3]["error"]["detail"] == "70 tokens, image tokens included; student.max_model_len is 64"
