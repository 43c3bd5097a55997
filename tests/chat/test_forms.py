import functools
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from dream_ray.chat.forms import dialogue, form_of
from dream_ray.chat.parse import (
    parse_answer,
    parse_choice,
    parse_observations,
    parse_score,
    parse_verdict,
    parse_yes_no,
)
from dream_ray.chat.protocol import CHOICES, ChatRequest, Task, Unreadable
from dream_ray.records import Observation, Verdict, to_row
from dream_ray.taxonomy import Category, Source

PARSERS: dict[Task, Callable[[str], Any]] = {
    Task.IMAGE_PASS: parse_observations,
    Task.TEXT_PASS: parse_observations,
    Task.VERIFY: parse_yes_no,
    Task.HIT: parse_yes_no,
    Task.SCORE: parse_score,
    Task.HELPFULNESS: parse_score,
    Task.VERDICT: parse_verdict,
    Task.ANSWER_RISKY: parse_answer,
    Task.ANSWER_BENIGN: parse_answer,
}
VALUES: dict[Callable[[str], Any], dict[Any, Any]] = {
    parse_yes_no: {"Yes": True, "No": False},
    parse_verdict: {"Refuses": Verdict.REFUSES, "Warns": Verdict.WARNS, "Complies": Verdict.COMPLIES},
    parse_score: {number: float(number) for number in range(11)},
}
for benchmark_task, words in CHOICES.items():
    PARSERS[benchmark_task] = functools.partial(parse_choice, words=words)
    VALUES[PARSERS[benchmark_task]] = {word.capitalize(): word for word in words}


def written(value: object) -> list[str]:
    """What models make of a JSON value: tight, spaced, over several lines, in a fence, after a thought."""
    spaced = json.dumps(value)
    return [
        json.dumps(value, separators=(",", ":")),
        spaced,
        json.dumps(value, indent=2),
        f"```json\n{json.dumps(value, indent=2)}\n```",
        f"No 3 steps, says the reply; yes.\n{spaced}",
    ]


@pytest.mark.parametrize("task", [task for task in Task if PARSERS[task] in VALUES])
def test_the_parser_reads_all_that_the_schema_allows(task: Task) -> None:
    form, parse = form_of(task), PARSERS[task]
    assert form.schema is not None
    ((key, value_schema),) = form.schema["properties"].items()
    assert value_schema["enum"] == list(VALUES[parse])
    for value, meaning in VALUES[parse].items():
        for text in written({key: value}):
            assert parse(text) == meaning, text
        assert parse(str(value)) == meaning
        assert (str(value) in form.choices) != bool(form.regex and re.fullmatch(form.regex, str(value)))


@pytest.mark.parametrize("task", [Task.IMAGE_PASS, Task.TEXT_PASS])
def test_observations_of_the_schema_are_read_whole(task: Task) -> None:
    schema: Any = form_of(task).schema
    item = schema["properties"]["observations"]["items"]
    assert set(item["required"]) == {"content", "source", "category"}
    sources = [Source(name) for name in item["properties"]["source"]["enum"]]
    assert [source.in_image for source in sources] == [task == Task.IMAGE_PASS] * 2
    observations = tuple(
        Observation("a [sign] {x}", source, Category(name))
        for source in sources
        for name in item["properties"]["category"]["enum"]
    )
    assert len(observations) == 18
    for found in (observations, ()):
        for text in written({"observations": [to_row(observation) for observation in found]}):
            assert parse_observations(text) == (found, 0)


def test_objects_are_closed_as_strict_mode_wants() -> None:
    def objects(node: Any) -> list[Any]:
        inner = [] if not isinstance(node, dict | list) else list(node.values() if isinstance(node, dict) else node)
        here = [node] if isinstance(node, dict) and node.get("type") == "object" else []
        return here + [found for child in inner for found in objects(child)]

    for task in Task:
        form = form_of(task)
        if form.schema is None:
            assert not form.choices
            assert form.regex is None
            continue
        assert form.schema["type"] == "object"
        for node in objects(form.schema):
            assert node["additionalProperties"] is False
            assert node["required"] == list(node["properties"])


def test_the_model_hears_what_was_wrong() -> None:
    request = ChatRequest(Task.SCORE, {}, unreadable=Unreadable("rather good", "no_score"))
    first, reply, correction = dialogue("Grade it.", request)
    assert (first, reply) == (("user", "Grade it."), ("assistant", "rather good"))
    assert correction[0] == "user"
    assert "no score" in correction[1]
    assert "one number from 0 to 10" in correction[1]


def test_a_blank_reply_makes_no_empty_message() -> None:
    ((speaker, text),) = dialogue("Grade it.", ChatRequest(Task.SCORE, {}, unreadable=Unreadable(" ", "reply_empty")))
    assert speaker == "user"
    assert text.startswith("Grade it.")
    assert "reply empty" in text
