"""A benchmark's prompts among the training prompts are found by content."""

from pathlib import Path

from dream_ray.pipeline.leaks import trained_on
from dream_ray.pipeline.parts import write_part
from dream_ray.records import Prompt, Split, Turn, make_prompt, to_table
from tests.records_for_tests import stored_image


def prompt(source: str, key: str, text: str, split: Split, *images) -> Prompt:
    return make_prompt(source=source, source_id=key, turns=[Turn("user", text, images)], split=split)


def test_same_words_and_pictures_are_found_whatever_their_source(tmp_path: Path) -> None:
    red, blue = (stored_image(tmp_path, colour) for colour in ("red", "blue"))
    training = [
        prompt("mine", "a", "What is  this?", Split.TRAIN, red),
        prompt("mine", "b", "What is this?", Split.TRAIN, blue),
    ]
    development = [prompt("mine", "c", "Who is that?", Split.DEV)]
    benchmark = [
        prompt("bench", "1", "what is this?", Split.HELD_OUT, red),
        prompt("bench", "2", "Who is that?", Split.HELD_OUT),
        prompt("bench", "3", "What is this?", Split.HELD_OUT),
    ]
    for folder, part, rows in (
        ("mine", "train-00-000000", training),
        ("mine", "dev-00-000000", development),
        ("bench", "held_out-00-000000", benchmark),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_part(str(tmp_path / folder), part, to_table(Prompt, rows))
    assert trained_on._function(str(tmp_path / "mine"), str(tmp_path / "bench")) == ["bench:1"]
