"""Asking the judge a benchmark's questions about sampled answers.

Contract: `grade` answers all questions about one answer or gives the reason why not; a judge that failed on one leaves no
partial grade. `GradeActor` is the Ray Data side: it takes tables with the columns `job`, `prompt` (Prompt), `rollout`
(Rollout or null) and `error` (ErrorRow or null) and adds `grade` (Grade or null). A row that came with an error passes
through; one that cannot be graded keeps its rollout and gets an error with stage "judge".
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from dream_ray.chat.ask import AskFailed, Usage, all_of, ask
from dream_ray.chat.factory import ChatServices, make_chat
from dream_ray.chat.parse import parse_choice
from dream_ray.chat.protocol import CHOICES, ChatModel, ChatRequest
from dream_ray.config import ChatConfig, ImageConfig
from dream_ray.evaluate.benchmarks import BENCHMARKS
from dream_ray.evaluate.benchmarks.protocol import Benchmark, Question
from dream_ray.images import BadImage
from dream_ray.outcomes import require_same_rows, struct_of
from dream_ray.records import ErrorRow, Grade, Label, Prompt, Rollout, from_row, to_row, to_table
from dream_ray.stored_images import read_images

STAGE = "judge"
"""The stage's name in error rows."""


async def grade(
    benchmark: Benchmark, prompt: Prompt, rollout: Rollout, images: Sequence[bytes], chat: ChatModel | None
) -> Grade | ErrorRow:
    """The judge's answers to all questions about one answer; `images` are the encoded images of the prompt in order.

    `chat` may be None for a benchmark without questions.
    """
    usage = Usage()

    async def answered(question: Question) -> Label:
        if not rollout.text.strip():
            return Label(question.task.value, question.empty, "")
        assert chat is not None
        request = ChatRequest(question.task, question.fields(prompt, rollout.text), tuple(images))
        return await ask(chat, request, partial(_label, question), usage)

    try:
        labels = await all_of([answered(question) for question in benchmark.questions(prompt)])
    except AskFailed as failure:
        return ErrorRow(STAGE, rollout.rollout_id, failure.reason, failure.detail, failure.attempts)
    return Grade(
        rollout_id=rollout.rollout_id,
        prompt_id=prompt.prompt_id,
        labels=tuple(labels),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


def _label(question: Question, reply: str) -> Label:
    return Label(question.task.value, parse_choice(reply, CHOICES[question.task]), reply)


class GradeActor:
    """Ray Data actor class (batch_format="pyarrow") around one judge; see the module's contract for the columns."""

    def __init__(self, chat: ChatConfig, images: ImageConfig, services: ChatServices, benchmarks: Mapping[str, str]):
        """`benchmarks` gives the name of the benchmark that a job belongs to."""
        self._images, self._benchmarks = images, benchmarks
        # Multiple-choice answers are read without a judge, so none is loaded for them.
        asked = any(BENCHMARKS[name].tasks for name in benchmarks.values())
        self._chat = make_chat(chat, services) if asked else None

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """The batch with `grade` added. Raises ValueError where a row is lost or doubled."""
        rows = batch.select(["job", "prompt", "rollout", "error"]).to_pylist()
        sampled = [row for row in rows if row["rollout"] is not None]
        outcomes = await all_of([self._one(row) for row in sampled])
        ids = [item.row_id if isinstance(item, ErrorRow) else item.rollout_id for item in outcomes]
        require_same_rows(STAGE, [row["rollout"]["rollout_id"] for row in sampled], ids)
        # Arrow does not check required fields inside a struct; as columns of their own they are checked.
        to_table(Grade, [outcome for outcome in outcomes if isinstance(outcome, Grade)])

        found = iter(outcomes)
        grades, errors = [], []
        for row in rows:
            outcome = next(found) if row["rollout"] is not None else None
            grades.append(to_row(outcome) if isinstance(outcome, Grade) else None)
            errors.append(to_row(outcome) if isinstance(outcome, ErrorRow) else row["error"])
        return _with_columns(batch, errors, grades)

    @staticmethod
    def set_aside(row: pa.Table, reason: str, detail: str, attempts: int) -> pa.Table:
        """What comes of an answer that is not to be graded."""
        rollout_id = row["rollout"].to_pylist()[0]["rollout_id"]
        return _with_columns(row, [to_row(ErrorRow(STAGE, rollout_id, reason, detail, attempts))], [None])

    async def _one(self, row: dict[str, Any]) -> Grade | ErrorRow:
        prompt, rollout = from_row(Prompt, row["prompt"]), from_row(Rollout, row["rollout"])
        try:
            images = await asyncio.to_thread(read_images, prompt.images, self._images)
        except BadImage as error:
            return ErrorRow(STAGE, rollout.rollout_id, error.reason, error.detail, 1)
        return await grade(BENCHMARKS[self._benchmarks[row["job"]]], prompt, rollout, images, self._chat)


def _with_columns(batch: pa.Table, errors: Sequence[Any], grades: Sequence[Any]) -> pa.Table:
    """The batch with `error` replaced and `grade` added."""
    error = pa.array(errors, type=struct_of(ErrorRow))
    graded = batch.set_column(batch.column_names.index("error"), "error", error)
    return graded.append_column("grade", pa.array(grades, type=struct_of(Grade)))
