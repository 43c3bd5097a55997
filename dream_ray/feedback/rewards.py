"""The scorer as a reward function of TRL's online trainers (GRPOTrainer, RLOOTrainer; written against TRL 1.16).

Contract: `trl_reward(url)` gives a function as TRL calls it: prompts and completions (plain texts or chat messages), the
dataset's columns as keyword arguments, one reward or None back per completion. Rewards are shares of their range, 0 to 1.
None, an answer that the judge failed on, is left out of TRL's advantages; a scorer that does not answer at all ends the
training with an error, because a batch of Nones would train on nothing and say little.
"""

import asyncio
import base64
import io
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image
from pydantic import ValidationError

from dream_ray.chat.ask import all_of
from dream_ray.chat.fields import transcript
from dream_ray.config import JudgeConfig
from dream_ray.feedback.client import ScorerClient, chunked
from dream_ray.feedback.rubric import reward_share
from dream_ray.feedback.wire import ScoreItem, ScoreResult, explain
from dream_ray.records import Turn

log = logging.getLogger(__name__)

Reward = Callable[..., list[float | None]]


def trl_reward(url: str, token_env: str = "", timeout_s: float = JudgeConfig().timeout_s) -> Reward:
    """A reward function that asks the scorer at `url`; `token_env` names the variable that holds its token.

    Of the dataset's columns it reads `image` or `images` (PIL images, data URIs or uris) and `observations` (a list of
    {content, source, category}, empty for a benign prompt; without the column the scorer looks for the risks itself).
    `timeout_s` is the deadline of one request of up to 8 answers. Raises RequestFailed where the scorer does not answer.
    """
    config = JudgeConfig(token_env=token_env, timeout_s=timeout_s)

    def dream_ray_reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        items = [
            _item(
                number, prompt, completion, {name: values[number] for name, values in columns.items() if name in READ}
            )
            for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        # A thread of its own: the trainer's may run an event loop already, as a notebook's does.
        with ThreadPoolExecutor(1) as thread:
            results = thread.submit(asyncio.run, _ask(url, config, items)).result()
        rewards = [None if result.judgement is None else reward_share(result.judgement) for result in results]
        reasons = Counter(result.reason for result in results if result.judgement is None)
        if reasons:
            log.warning("%d of %d answers were not judged: %s", reasons.total(), len(results), dict(reasons))
        if log_metric is not None:
            log_metric("dream_ray_reward/unjudged", reasons.total() / max(len(results), 1))
        return rewards

    return dream_ray_reward


READ = ("image", "images", "observations")
"""The dataset's columns that say something of a prompt."""


async def _ask(url: str, config: JudgeConfig, items: Sequence[ScoreItem | ScoreResult]) -> list[ScoreResult]:
    """A result for each item that can be sent; those that cannot are results already."""
    client = ScorerClient(url, config)
    try:
        sent = [item for item in items if isinstance(item, ScoreItem)]
        answers = await all_of([client.score(chunk) for chunk in chunked(sent)])
    finally:
        await client.close()
    answered = iter([result for results, _ in answers for result in results])
    return [item if isinstance(item, ScoreResult) else next(answered) for item in items]


def _item(number: int, prompt: Any, completion: Any, columns: Mapping[str, Any]) -> ScoreItem | ScoreResult:
    """The item of one completion, or the result that says why it cannot be one."""
    if columns.get("images") is not None:
        images = columns["images"]
    elif columns.get("image") is not None:
        images = [columns["image"]]
    else:
        images = _images_in(prompt)
    try:
        return ScoreItem(
            rollout_id=f"completion-{number}",
            prompt_id=f"prompt-{number}",
            text=prompt if isinstance(prompt, str) else transcript([_turn(message) for message in prompt]),
            response=completion if isinstance(completion, str) else "\n".join(_turn(part).text for part in completion),
            images=tuple(_uri(image) for image in images),
            observations=columns.get("observations"),
        )
    except ValidationError as error:
        return ScoreResult(judgement=None, reason="judge_item_over_limits", detail=explain(error.errors()))


def _turn(message: Mapping[str, Any]) -> Turn:
    """A chat message, its content a text or a list of blocks, as a turn without its images."""
    content = message["content"]
    text = (
        content if isinstance(content, str) else "\n".join(part["text"] for part in content if part["type"] == "text")
    )
    return Turn(message["role"], text, ())


def _images_in(prompt: Any) -> list[Any]:
    """The images among a prompt's messages, where TRL puts those of a dataset."""
    if isinstance(prompt, str):
        return []
    contents = [message["content"] for message in prompt if not isinstance(message["content"], str)]
    return [part["image"] for content in contents for part in content if part["type"] == "image"]


def _uri(image: Any) -> str:
    """An image as the wire takes it."""
    if isinstance(image, str):
        return image
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"An image of the prompt is a {type(image).__name__}. Give PIL images, as a datasets.Image column holds them, "
            "or strings: data:image/...;base64,... or a uri that the scorer reads too."
        )
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
