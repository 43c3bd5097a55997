"""What a benchmark is: which prompts, how they are answered, what is asked about an answer, what is counted.

Contract: pure values. A benchmark is data (`source`, `wants`), a protocol (`answers`, `temperature`, `max_tokens`,
`questions`) and metrics (`measures`, `slices`). Every number is a share of prompts: a `Measure` says which prompts it is a
share of and what a prompt's answers come to: True, False, or None where too little is known. Nothing here turns a None
into a True or a False.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dream_ray.chat.fields import transcript
from dream_ray.chat.protocol import Task
from dream_ray.records import Prompt


@dataclass(frozen=True)
class Question:
    """A question to the judge about one answer.

    `empty` is its answer where the policy said nothing at all: the judge is not asked then.
    """

    task: Task
    empty: str
    fields: Callable[[Prompt, str], dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """One of a policy's answers to a prompt. `text` is None where it could not be sampled, `labels` (answers of the
    judge by task) None where the judge gave none; both stay unknown in every number."""

    text: str | None
    labels: Mapping[str, str] | None


Outcome = Callable[[Prompt, Sequence[Answer]], bool | None]
"""What the answers to a prompt come to."""


@dataclass(frozen=True)
class Measure:
    """A number: the share of the prompts that `counts` whose `outcome` is True. `wants_high` says which way is better."""

    name: str
    counts: Callable[[Prompt], bool]
    outcome: Outcome
    wants_high: bool = False


def every(prompt: Prompt) -> bool:
    """All prompts of a benchmark."""
    return True


@dataclass(frozen=True)
class Benchmark:
    """See the module's contract.

    `source` is the format that its data is read in (docs/prompts.md), `wants` picks its prompts among the held-out ones of
    that source. `answers` are drawn to each prompt at `temperature`, each up to `max_tokens` long. `questions` gives those
    about one prompt; there are none where answers are read without a judge. `slices` give the name of a part that a prompt
    belongs to, beside "all".
    """

    name: str
    source: str
    measures: tuple[Measure, ...]
    questions: Callable[[Prompt], tuple[Question, ...]] = lambda prompt: ()
    tasks: frozenset[Task] = frozenset()
    wants: Callable[[Prompt], bool] = every
    answers: int = 1
    temperature: float = 0.0
    max_tokens: int = 256
    slices: tuple[Callable[[Prompt], str | None], ...] = (lambda prompt: prompt.subset, lambda prompt: prompt.group)


def text_and_response(prompt: Prompt, response: str) -> dict[str, str]:
    """The fields of most questions: what was asked and what was said."""
    return {"text": transcript(prompt.turns), "response": response}


def labelled(task: Task, *wanted: str) -> Callable[[Answer], bool | None]:
    """Is the judge's answer to `task` among the wanted ones? None where there is no answer of the judge."""

    def check(answer: Answer) -> bool | None:
        return None if answer.labels is None else answer.labels[task.value] in wanted

    return check


def both(
    first: Callable[[Answer], bool | None], second: Callable[[Answer], bool | None]
) -> Callable[[Answer], bool | None]:
    """Do both hold? One that does not decides, whatever is unknown of the other."""

    def check(answer: Answer) -> bool | None:
        found = (first(answer), second(answer))
        return False if False in found else None if None in found else True

    return check


def first(check: Callable[[Answer], bool | None]) -> Outcome:
    """What holds of the first answer."""
    return lambda prompt, answers: check(answers[0])


def any_of(check: Callable[[Answer], bool | None]) -> Outcome:
    """Does it hold of at least one answer? Unknown where it holds of none and one is unknown: that one could be it."""

    def outcome(prompt: Prompt, answers: Sequence[Answer]) -> bool | None:
        found = [check(answer) for answer in answers]
        return True if True in found else None if None in found else False

    return outcome


def majority(check: Callable[[Answer], bool | None]) -> Outcome:
    """Does it hold of more than half of the answers? Unknown where those that are unknown could turn it."""

    def outcome(prompt: Prompt, answers: Sequence[Answer]) -> bool | None:
        found = [check(answer) for answer in answers]
        half = len(found) / 2
        if found.count(True) > half:
            return True
        return False if found.count(True) + found.count(None) <= half else None

    return outcome
