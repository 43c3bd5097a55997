"""Answers as they come over the wire to results that go back: images opened, risks looked for, the rubric asked.

Contract: `ItemJudge` gives one result per item in order; whatever is wrong with an item (no such image, a judge that
failed) is that item's reason and touches no other. What the chat model itself raises, a setting that cannot work, passes
through. Knows nothing of HTTP and Ray.
"""

import asyncio
import dataclasses
from collections.abc import Sequence

from dream_ray.chat.ask import all_of
from dream_ray.chat.protocol import ChatModel
from dream_ray.config import ImageConfig
from dream_ray.feedback.rubric import JudgeItem, Unjudged, judge
from dream_ray.feedback.wire import ScoreItem, ScoreResult
from dream_ray.images import DATA_URI, BadImage, decode, from_data_uri, sha256
from dream_ray.records import Disentanglement, ErrorRow, Turn, make_prompt
from dream_ray.stored_images import read_image
from dream_ray.teacher.disentangle import disentangle

Found = dict[tuple[str, tuple[str, ...]], "asyncio.Task[Disentanglement | ErrorRow]"]
"""What is being looked for, by text and images: the answers to one prompt in a request share one look."""


class ItemJudge:
    """A chat model as judge of items, with the limits on their images."""

    def __init__(self, chat: ChatModel, images: ImageConfig, opens_uris: bool):
        self.chat = chat
        self._images = images
        self._opens_uris = opens_uris

    async def __call__(self, items: Sequence[ScoreItem]) -> tuple[ScoreResult, ...]:
        """Judge all items at once; results in their order."""
        found: Found = {}
        return tuple(await all_of([self._one(item, found) for item in items]))

    async def _one(self, item: ScoreItem, found: Found) -> ScoreResult:
        try:
            images = tuple([await asyncio.to_thread(self._image, uri) for uri in item.images])
        except BadImage as error:
            return ScoreResult(judgement=None, reason=error.reason, detail=error.detail)
        observations, spent = item.observations, None
        if observations is None:
            key = (item.text, tuple(sha256(image) for image in images))
            first = key not in found
            if first:
                found[key] = asyncio.ensure_future(self._look(item, images))
            looked = await found[key]
            if isinstance(looked, ErrorRow):
                cost = (
                    looked
                    if first
                    else dataclasses.replace(looked, prompt_tokens=0, completion_tokens=0, cached_tokens=0)
                )
                return ScoreResult(
                    judgement=None,
                    reason=cost.reason,
                    detail=f"{cost.stage}: {cost.detail}",
                    attempts=cost.attempts,
                    fingerprint=cost.fingerprint,
                    prompt_tokens=cost.prompt_tokens,
                    completion_tokens=cost.completion_tokens,
                    cached_tokens=cost.cached_tokens,
                )
            observations, spent = looked.observations, looked if first else None
        outcome = await judge(
            JudgeItem(item.rollout_id, item.prompt_id, item.text, images, observations, item.response), self.chat
        )
        shown = observations if item.observations is None else None
        if isinstance(outcome, Unjudged):
            return ScoreResult(judgement=None, observations=shown, **dataclasses.asdict(outcome))
        if spent is not None:
            outcome = dataclasses.replace(
                outcome,
                prompt_tokens=outcome.prompt_tokens + spent.prompt_tokens,
                completion_tokens=outcome.completion_tokens + spent.completion_tokens,
                cached_tokens=outcome.cached_tokens + spent.cached_tokens,
            )
        return ScoreResult(judgement=outcome, observations=shown)

    async def _look(self, item: ScoreItem, images: Sequence[bytes]) -> Disentanglement | ErrorRow:
        """The risks of an item's prompt. Its dialogue comes as one text, so it is looked through as one turn."""
        prompt = make_prompt(source="scorer", source_id=item.prompt_id, turns=[Turn("user", item.text, ())])
        return await disentangle(prompt, images, self.chat)

    def _image(self, uri: str) -> bytes:
        """The encoded bytes of one image, seen to be an image within the limits. Raises BadImage."""
        if uri.startswith(DATA_URI):
            content = from_data_uri(uri, self._images)
        elif self._opens_uris:
            content = read_image(uri, self._images)
        else:
            raise BadImage(
                "image_uri_refused", "this scorer opens no uris; send the image as data:image/...;base64,..."
            )
        decode(content, self._images)
        return content
