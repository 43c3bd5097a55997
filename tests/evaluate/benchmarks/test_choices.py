"""Reading multiple-choice answers."""

import pytest

from dream_ray.evaluate.benchmarks.choices import read_option

OPTIONS = ("a red car", "a blue bus", "two cats", "none of these")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B) a blue bus", "B"),
        ("**B**", "B"),
        ("C: two cats", "C"),
        ("B\nThe bus is blue.", "B"),
        ("The answer is C.", "C"),
        ("The correct answer is (D).", "D"),
        ("I would say that the right option is B because the bus is blue.", "B"),
        ("Answer: a", "A"),
        ("Two cats.", "C"),
        ("  a blue bus", "B"),
    ],
)
def test_options_are_read(text: str, expected: str) -> None:
    assert read_option(text, OPTIONS) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A cat sits on a mat.",
        "I think that it is a vehicle.",
        "The answer is a vehicle of some kind.",
        "Either option A or option B.",
        "E",
        "I am not sure.",
    ],
)
def test_what_names_no_option_or_several_is_not_read(text: str) -> None:
    assert read_option(text, OPTIONS) is None
