"""Disentangling: the teacher names each risk of a prompt, where it stands and what kind it is.

Contract: `disentangle` asks for the risks of each image, then of the user's words, then has every observation
verified (the steps of DREAM's data, reference: arXiv 2504.18053; their order and the verification are our reading of
its prompts). A pass may only name sources that it can see. Any call that fails or stays unreadable fails the prompt:
an empty list of observations always means "looked at, nothing found". `DisentangleActor` is the Ray Data side of it.
"""

import asyncio
from collections.abc import Sequence

import pyarrow as pa

from dream_ray.chat.ask import AskFailed, Usage, all_of, ask, error_row, with_raw
from dream_ray.chat.factory import ChatServices, make_chat
from dream_ray.chat.fields import user_text
from dream_ray.chat.parse import parse_observations, parse_yes_no
from dream_ray.chat.protocol import ChatModel, ChatRequest, Task
from dream_ray.config import ImageConfig, TeacherConfig
from dream_ray.images import BadImage
from dream_ray.outcomes import outcome_table, require_same_rows
from dream_ray.records import Disentanglement, ErrorRow, Observation, Prompt, from_table
from dream_ray.stored_images import read_images

STAGE = "disentangle"
"""The stage's name in error rows."""
TASKS = frozenset({Task.IMAGE_PASS, Task.TEXT_PASS, Task.VERIFY})
"""What is asked."""


async def disentangle(prompt: Prompt, image_bytes: Sequence[bytes], chat: ChatModel) -> Disentanglement | ErrorRow:
    """The verified observations of a prompt, image risks first, or the reason why they are not known.

    `image_bytes` holds the encoded images of `prompt.images` in order. `dropped` counts observations outside the
    taxonomy or with a source that the pass cannot see; repetitions are merged and not counted.
    """
    text = user_text(prompt.turns)
    if not text and not image_bytes:
        return ErrorRow(STAGE, prompt.prompt_id, "prompt_empty", "neither text nor image", 1)
    passes = [(ChatRequest(Task.IMAGE_PASS, {"text": text}, (image,)), True) for image in image_bytes]
    if text:
        passes.append((ChatRequest(Task.TEXT_PASS, {"text": text}), False))
    usage = Usage()
    try:
        found = await all_of([ask(chat, request, with_raw(parse_observations), usage) for request, _ in passes])
        named, dropped = _merge([read for read, _ in found], [in_image for _, in_image in passes])
        confirmed = await all_of([ask(chat, _verification(item), with_raw(parse_yes_no), usage) for item in named])
    except AskFailed as failure:
        return error_row(STAGE, prompt.prompt_id, failure, usage)
    return Disentanglement(
        prompt_id=prompt.prompt_id,
        observations=tuple(item for item, (yes, _) in zip(named, confirmed, strict=True) if yes),
        rejected=sum(not yes for yes, _ in confirmed),
        dropped=dropped,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        raw=tuple(text for _, text in (*found, *confirmed)),
    )


def _merge(
    found: Sequence[tuple[tuple[Observation, ...], int]], from_image: Sequence[bool]
) -> tuple[list[Observation], int]:
    """All observations once, in the order of the passes, and the number dropped."""
    merged: dict[tuple[str, str, str], Observation] = {}
    dropped = 0
    for (observations, outside), in_image in zip(found, from_image, strict=True):
        dropped += outside
        for item in observations:
            if item.source.in_image != in_image:
                dropped += 1
                continue
            merged.setdefault((" ".join(item.content.lower().split()), item.source, item.category), item)
    return list(merged.values()), dropped


def _verification(observation: Observation) -> ChatRequest:
    return ChatRequest(Task.VERIFY, {"content": observation.content, "category": observation.category.value})


class DisentangleActor:
    """Ray Data actor class: batches of Prompt rows (batch_format="pyarrow") to outcome tables of Disentanglement."""

    def __init__(self, teacher: TeacherConfig, images: ImageConfig, services: ChatServices):
        self._images = images
        self._chat = make_chat(teacher.chat, services)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """One outcome per prompt. Raises ValueError where a row is lost or doubled."""
        prompts = from_table(Prompt, batch)
        outcomes = await all_of([self._one(prompt) for prompt in prompts])
        ids = [outcome.row_id if isinstance(outcome, ErrorRow) else outcome.prompt_id for outcome in outcomes]
        require_same_rows(STAGE, [prompt.prompt_id for prompt in prompts], ids)
        return outcome_table(Disentanglement, outcomes)

    @staticmethod
    def set_aside(row: pa.Table, reason: str, detail: str, attempts: int) -> pa.Table:
        """What comes of a prompt that is not to be worked on."""
        prompt_id = row.to_pylist()[0]["prompt_id"]
        return outcome_table(Disentanglement, [ErrorRow(STAGE, prompt_id, reason, detail, attempts)])

    async def _one(self, prompt: Prompt) -> Disentanglement | ErrorRow:
        if prompt.observations is not None:  # they came with the source, and the config says to use them
            return Disentanglement(prompt.prompt_id, prompt.observations, 0, 0, 0, 0)
        try:
            contents = await asyncio.to_thread(read_images, prompt.images, self._images)
        except BadImage as error:
            return ErrorRow(STAGE, prompt.prompt_id, error.reason, error.detail, 1)
        return await disentangle(prompt, contents, self._chat)
