"""A judge over answers that people have labelled: how far it can be trusted.

Contract: `judge_rows` asks the judge for the verdict on each answer, some at a time, and gives an `Outcome` per row: a
verdict, or None and the reason. `calibrate` does so for each set and keeps everything that a reader may want to check.
Nothing here prints; prompts and answers go to no log.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dream_ray.chat.ask import AskFailed, Usage, ask
from dream_ray.chat.parse import parse_verdict
from dream_ray.chat.protocol import ChatModel, ChatRequest, Task
from dream_ray.config import ImageConfig
from dream_ray.evaluate.agreement import Agreement, Pair, Reading, agreement, confusion
from dream_ray.evaluate.labelled import Label, LabelledRow, LabelledSet
from dream_ray.images import BadImage
from dream_ray.records import Verdict
from dream_ray.stored_images import read_image

IN_FLIGHT = 64
"""Questions asked at once; a backend that bears fewer holds them back itself."""


@dataclass(frozen=True)
class Outcome:
    """The verdict on one answer, or None with a short reason for counting and a detail."""

    verdict: Verdict | None
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class SetResult:
    """A set and its outcomes, one per row in the rows' order."""

    data: LabelledSet
    outcomes: tuple[Outcome, ...]

    @property
    def pairs(self) -> list[Pair]:
        """The human label and the judge's verdict of each row."""
        rows = zip(self.data.rows, self.outcomes, strict=True)
        return [(row.label, Label(outcome.verdict.value) if outcome.verdict else None) for row, outcome in rows]

    @property
    def human_pairs(self) -> list[Pair]:
        """The labels of two people, where a row has them."""
        return [row.annotations for row in self.data.rows if row.annotations is not None]


@dataclass(frozen=True)
class Numbers:
    """What is reported of one set or of all: the judge against people in each reading, and people among themselves."""

    name: str
    readings: tuple[Agreement, ...]
    humans: tuple[Agreement, ...]
    confusion: Counter[Pair]
    unjudged: Counter[str]


async def judge_rows(
    chat: ChatModel,
    rows: Sequence[LabelledRow],
    images: ImageConfig,
    usage: Usage,
    advance: Callable[[], None],
    in_flight: int = IN_FLIGHT,
) -> tuple[Outcome, ...]:
    """An outcome per row, in the rows' order. `advance` is called after each. A backend's own errors (a setting that
    cannot work) pass through."""
    outcomes: list[Outcome | None] = [None] * len(rows)
    waiting = iter(enumerate(rows))

    async def work() -> None:
        for index, row in waiting:
            outcomes[index] = await _outcome(chat, row, images, usage)
            advance()

    # A group, not gather: the first error ends the other workers too, so that a dead judge is not asked on.
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(in_flight, len(rows))):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return tuple(outcome for outcome in outcomes if outcome is not None)


async def _outcome(chat: ChatModel, row: LabelledRow, images: ImageConfig, usage: Usage) -> Outcome:
    try:
        pictures = (await asyncio.to_thread(read_image, row.image, images),) if row.image else ()
        fields = {"text": row.text, "response": row.response}
        return Outcome(await ask(chat, ChatRequest(Task.VERDICT, fields, pictures), parse_verdict, usage))
    except (AskFailed, BadImage) as failure:
        return Outcome(None, failure.reason, failure.detail)


async def calibrate(
    chat: ChatModel, sets: Iterable[LabelledSet], images: ImageConfig, usage: Usage, advance: Callable[[], None]
) -> list[SetResult]:
    """The outcomes of every set."""
    return [SetResult(data, await judge_rows(chat, data.rows, images, usage, advance)) for data in sets]


def numbers(name: str, results: Sequence[SetResult]) -> Numbers:
    """The numbers of the rows of all `results` together. Rows are taken as independent, though sets may share prompts."""
    pairs = [pair for result in results for pair in result.pairs]
    people = [pair for result in results for pair in result.human_pairs]
    return Numbers(
        name=name,
        readings=tuple(agreement(pairs, reading) for reading in Reading),
        humans=tuple(agreement(people, reading) for reading in Reading) if people else (),
        confusion=confusion(pairs),
        unjudged=Counter(
            outcome.reason for result in results for outcome in result.outcomes if outcome.verdict is None
        ),
    )
