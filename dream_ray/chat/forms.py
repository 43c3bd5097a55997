"""The form of each task's answer: what an endpoint or an engine is asked to keep to, and what a model is told that did not.

Contract: pure. `form_of` gives a task's form: a JSON schema for endpoints, whose root is an object as their strict mode
wants it, and for engines that can do with less the words or the regex. Each of them is read by the task's parser in
parse.py exactly as prose is. `dialogue` is what is said to the model: the question, and after an unreadable reply that
reply and what was wrong with it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dream_ray.chat.protocol import CHOICES, ChatRequest, Task
from dream_ray.records import Verdict
from dream_ray.taxonomy import Category, Source


@dataclass(frozen=True)
class Form:
    """How an answer has to look.

    `wanted` says it in words, to end the sentence "Answer with ...". All the others are None or empty for free text.
    `schema` is a JSON schema with an object as its root. `choices` are the words one of which is the bare answer, `regex`
    matches the bare answer; a list of observations has neither.
    """

    wanted: str
    schema: Mapping[str, Any] | None = None
    choices: tuple[str, ...] = ()
    regex: str | None = None


def form_of(task: Task) -> Form:
    """The form of the task's answer."""
    match task:
        case Task.IMAGE_PASS:
            return _observations(source for source in Source if source.in_image)
        case Task.TEXT_PASS:
            return _observations(source for source in Source if not source.in_image)
        case Task.VERIFY | Task.HIT:
            return _choice("Yes", "No")
        case Task.VERDICT:
            return _choice(*(verdict.value.capitalize() for verdict in Verdict))
        case Task.SCORE | Task.HELPFULNESS:
            # An enum and not a minimum and a maximum: more endpoints take it.
            schema = _object(score={"type": "integer", "enum": list(range(11))})
            return Form("one number from 0 to 10", schema, regex="(10|[0-9])")
        case Task.ANSWER_RISKY | Task.ANSWER_BENIGN:
            return Form("the reply in plain words")
        case _:
            return _choice(*(word.capitalize() for word in CHOICES[task]))


def _observations(sources: Iterable[Source]) -> Form:
    item = _object(
        content={"type": "string"},
        source={"type": "string", "enum": [source.value for source in sources]},
        category={"type": "string", "enum": [category.value for category in Category]},
    )
    return Form(
        'one whole JSON list of objects with the keys "content", "source" and "category", or [] if there is no risk',
        _object(observations={"type": "array", "items": item}),
    )


def _choice(*words: str) -> Form:
    return Form(
        f"the single word {', '.join(words[:-1])} or {words[-1]}",
        _object(answer={"type": "string", "enum": list(words)}),
        choices=words,
    )


def _object(**properties: Any) -> dict[str, Any]:
    """An object with exactly these keys, as strict mode asks: all required, none besides."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def dialogue(prompt: str, request: ChatRequest) -> list[tuple[Literal["user", "assistant"], str]]:
    """Who says what: `prompt`, the rendered template, and where the request carries an unreadable reply what follows it.

    The images belong to the first message. A blank reply has no message of its own, as endpoints refuse empty ones.
    """
    if request.unreadable is None:
        return [("user", prompt)]
    correction = (
        f"This could not be read ({request.unreadable.reason.replace('_', ' ')}). "
        f"Answer with {form_of(request.task).wanted}, and nothing else."
    )
    if not request.unreadable.reply.strip():
        return [("user", f"{prompt}\n\nYou were asked this before. {correction}")]
    return [("user", prompt), ("assistant", request.unreadable.reply), ("user", correction)]
