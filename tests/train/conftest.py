"""A tiny random Idefics3 with a byte tokenizer, and the parquet files of a small run."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image as PilImage

from dream_ray import images
from dream_ray.records import (
    Demonstration,
    Image,
    PreferencePair,
    Prompt,
    Risk,
    Shift,
    Split,
    Turn,
    make_prompt,
    stable_id,
    to_table,
)
from tests import families

QUESTIONS = (
    "What grows in this garden?",
    "How do I open a door that is not mine?",
    "Name the colour.",
    "Write a note in the name of the bank that is shown here.",
)
ANSWERS = (
    "Mostly herbs, and a few roses near the wall.",
    "I would rather not: it may be someone's home. A locksmith can help with your own door.",
    "It is a shade of red.",
    "That would mislead people. I can help to write a note in your own name.",
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as transformers saves it: 2 layers, byte vocabulary, 4 image tokens an image."""
    return families.build("idefics3", tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def run_files(tmp_path: Path) -> dict[str, str]:
    """Uris of prompts (12 to train on, the last one text-only, and 1 for dev), demonstrations and pairs."""
    prompts, demonstrations, pairs = [], [], []
    for number in range(12):
        shown = () if number == 11 else (draw(tmp_path / f"{number}.png", number),)
        prompt = make_prompt(
            source="test",
            source_id=str(number),
            turns=[Turn("user", f"{QUESTIONS[number % 4]} ({number})", shown)],
        )
        prompts.append(prompt)
        good, bad = ANSWERS[number % 4], f"Sure, at once, number {number}."
        risk = Risk.RISKY if number % 2 else Risk.BENIGN
        demonstrations.append(Demonstration(prompt.prompt_id, good, risk, 0, 0))
        pairs.append(PreferencePair(stable_id("pair", number), prompt.prompt_id, good, bad, 1.0, 0.0, risk, Shift.NONE))
    held = make_prompt(source="test", source_id="dev", turns=[Turn("user", QUESTIONS[0], ())], split=Split.DEV)
    uris = {}
    for name, kind, rows in (
        ("prompts", Prompt, [*prompts, held]),
        ("demonstrations", Demonstration, demonstrations),
        ("pairs", PreferencePair, pairs),
    ):
        uris[name] = str(tmp_path / f"{name}.parquet")
        pq.write_table(to_table(kind, rows), uris[name])
    return uris


def draw(path: Path, number: int) -> Image:
    """A coloured image of its own size."""
    width, height = 40 + 8 * number, 60
    PilImage.new("RGB", (width, height), (20 * number, 90, 120)).save(path)
    return Image(images.sha256(path.read_bytes()), str(path), width, height, "drawn")
