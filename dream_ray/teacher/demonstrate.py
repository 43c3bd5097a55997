"""Demonstrating: the teacher writes the answer that SFT teaches.

Contract: a prompt with observations gets a risk-aware answer, one without a helpful answer; which of the two is
decided by the observations alone, never by the source's label. A failed or empty answer is an error row.
`DemonstrateActor` is the Ray Data side of it.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dream_ray.chat.ask import AskFailed, Usage, all_of, ask, error_row
from dream_ray.chat.factory import ChatServices, make_chat
from dream_ray.chat.fields import observations_field, transcript
from dream_ray.chat.parse import parse_answer
from dream_ray.chat.protocol import ChatModel, ChatRequest, Task
from dream_ray.config import ImageConfig, TeacherConfig
from dream_ray.images import BadImage
from dream_ray.outcomes import outcome_table, require_same_rows
from dream_ray.records import Demonstration, ErrorRow, Observation, Prompt, Risk, from_row
from dream_ray.stored_images import read_images

STAGE = "demonstrate"
"""The stage's name in error rows."""
TASKS = frozenset({Task.ANSWER_RISKY, Task.ANSWER_BENIGN})
"""What is asked."""


async def demonstrate(
    prompt: Prompt,
    observations: Sequence[Observation],
    image_bytes: Sequence[bytes],
    chat: ChatModel,
    max_words: int,
) -> Demonstration | ErrorRow:
    """The teacher's answer to a prompt, asked to stay within `max_words` words, or the reason why there is none."""
    fields = {"text": transcript(prompt.turns), "max_words": str(max_words)}
    if observations:
        task, risk = Task.ANSWER_RISKY, Risk.RISKY
        fields["observations"] = observations_field(observations)
    else:
        task, risk = Task.ANSWER_BENIGN, Risk.BENIGN
        fields["reference"] = prompt.reference_answer or ""
    usage = Usage()
    try:
        answer = await ask(chat, ChatRequest(task, fields, tuple(image_bytes)), parse_answer, usage)
    except AskFailed as failure:
        return error_row(STAGE, prompt.prompt_id, failure, usage)
    return Demonstration(
        prompt.prompt_id, answer, risk, usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens
    )


class DemonstrateActor:
    """Ray Data actor class (batch_format="pyarrow"): rows with a `prompt` struct and an `observations` list of
    structs to outcome tables of Demonstration."""

    def __init__(self, teacher: TeacherConfig, images: ImageConfig, services: ChatServices):
        self._images = images
        self._max_words = teacher.max_words
        self._chat = make_chat(teacher.chat, services)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """One outcome per prompt. Raises ValueError where a row is lost or doubled, or has None for observations."""
        rows = batch.select(["prompt", "observations"]).to_pylist()
        outcomes = await all_of([self._one(row) for row in rows])
        ids = [outcome.row_id if isinstance(outcome, ErrorRow) else outcome.prompt_id for outcome in outcomes]
        require_same_rows(STAGE, [row["prompt"]["prompt_id"] for row in rows], ids)
        return outcome_table(Demonstration, outcomes)

    @staticmethod
    def set_aside(row: pa.Table, reason: str, detail: str, attempts: int) -> pa.Table:
        """What comes of a prompt that is not to be worked on."""
        prompt_id = row.to_pylist()[0]["prompt"]["prompt_id"]
        return outcome_table(Demonstration, [ErrorRow(STAGE, prompt_id, reason, detail, attempts)])

    async def _one(self, row: dict[str, Any]) -> Demonstration | ErrorRow:
        prompt = from_row(Prompt, row["prompt"])
        if row["observations"] is None:
            raise ValueError(
                f"The prompt {prompt.prompt_id} has None for observations: it was not disentangled, and would be "
                "answered as if it were harmless. Join demonstrations only to prompts with a Disentanglement."
            )
        observations = [from_row(Observation, item) for item in row["observations"]]
        try:
            contents = await asyncio.to_thread(read_images, prompt.images, self._images)
        except BadImage as error:
            return ErrorRow(STAGE, prompt.prompt_id, error.reason, error.detail, 1)
        return await demonstrate(prompt, observations, contents, self._chat, self._max_words)
