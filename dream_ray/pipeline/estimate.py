"""What the questions of a stage come to: calls and tokens, predicted from counts of prompts.

Contract: pure. Calls follow from what the stages ask (teacher/disentangle.py, teacher/demonstrate.py, feedback/rubric.py)
and are exact where the assumptions are; a question that the response cache knows costs no call, so they are an upper bound.
Tokens are rules of thumb, good to know a bill's size, not its cents:

- text: CHARS_PER_TOKEN characters a token, OpenAI's rule for English (help.openai.com, "What are tokens");
- images: width x height / PIXELS_PER_TOKEN under the config's cap, Anthropic's rule (docs, "Vision"); Qwen2.5-VL has one
  token for 784 pixels, GPT-4o takes about half as many.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dream_ray.chat.meter import cost_usd
from dream_ray.chat.protocol import Task
from dream_ray.config import ChatConfig, RulesConfig
from dream_ray.pipeline.payments import price_of
from dream_ray.prompts import Templates

CHARS_PER_TOKEN = 4.0
"""Characters of English text in a token."""
PIXELS_PER_TOKEN = 750.0
"""Pixels of an image in a token."""
TOKENS_PER_WORD = 4 / 3
"""Tokens of an English word, by the same rule of OpenAI's."""
CALL_TOKENS = 10
"""What the chat format adds to a question."""
OBSERVATION_CHARS = 130
"""An observation as JSON."""
SHORT_REPLY_TOKENS = 8
"""Yes or No, a verdict, a number; as JSON where the endpoint is asked for it."""
LIST_TOKENS = 10
"""A list of observations without its items."""


@dataclass(frozen=True)
class Assumptions:
    """What cannot be known before the teacher has looked. Finished stages and the prompts' labels take their place."""

    risky_share: float = 0.5
    """Share of the prompts without label in which something risky is observed."""
    observations_per_risky: float = 2.0
    """Verified observations of a risky prompt."""
    rejected_per_prompt: float = 0.2
    """Observations of a prompt that verification turns down."""
    retry_share: float = 0.02
    """Share of the questions that are asked once more because the reply was unreadable."""
    answer_tokens: float | None = None
    """Length of the student's answers; rollout.max_tokens, the most they can have, where None."""
    image_sizes: tuple[tuple[int, int], ...] = ()
    """Width and height of some images of the sources; the config's pixel cap where empty."""


@dataclass(frozen=True)
class Part:
    """Counts of some prompts that go through the stages together.

    `texts` counts prompts with words, `chars` their characters, `reference_chars` those of answers that came with them.
    `risky` prompts have `observations` that were verified; `rejected` were not. `asked` is the share of prompts whose risks the
    teacher is asked for; the others bring theirs.
    """

    prompts: float
    images: float
    texts: float
    chars: float
    reference_chars: float
    risky: float
    observations: float
    rejected: float
    asked: float


@dataclass(frozen=True)
class Questions:
    """Questions of one task: how many, with how many characters, images and tokens of replies in all."""

    task: Task
    count: float
    chars: float
    images: float
    reply_tokens: float


@dataclass(frozen=True)
class Estimate:
    """What a stage is expected to come to."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float


def disentangle_questions(parts: Iterable[Part]) -> list[Questions]:
    """A pass per image, one over the words, one verification per observation that was named."""
    found = []
    for part in parts:
        named = part.asked * (part.observations + part.rejected)
        images, texts = part.asked * part.images, part.asked * part.texts
        passes = images + texts
        listed = named * OBSERVATION_CHARS / CHARS_PER_TOKEN / passes + LIST_TOKENS if passes else 0.0
        found += [
            Questions(Task.IMAGE_PASS, images, 0, images, images * listed),
            Questions(Task.TEXT_PASS, texts, part.asked * part.chars, 0, texts * listed),
            Questions(Task.VERIFY, named, named * OBSERVATION_CHARS, 0, named * SHORT_REPLY_TOKENS),
        ]
    return found


def demonstrate_questions(parts: Iterable[Part], max_words: int) -> list[Questions]:
    """One answer a prompt."""
    found = []
    for part in parts:
        risky, benign = _shares(part)
        seen = part.observations * OBSERVATION_CHARS
        words = max_words * TOKENS_PER_WORD
        found += [
            Questions(
                Task.ANSWER_RISKY, part.risky, risky * part.chars + seen, risky * part.images, part.risky * words
            ),
            Questions(
                Task.ANSWER_BENIGN,
                part.prompts - part.risky,
                benign * part.chars + part.reference_chars,
                benign * part.images,
                (part.prompts - part.risky) * words,
            ),
        ]
    return found


def judge_questions(parts: Iterable[Part], answers: int, answer_tokens: float) -> list[Questions]:
    """For each of a prompt's `answers`: a verdict, and a score and one hit per observation, or the helpfulness."""
    found = []
    for part in parts:
        risky, benign = _shares(part)
        chars = part.chars + part.prompts * answer_tokens * CHARS_PER_TOKEN
        seen = part.observations * OBSERVATION_CHARS
        hit_chars = part.observations * (chars / part.prompts) + seen if part.prompts else 0.0
        asked = [
            (Task.VERDICT, part.prompts, chars, part.images),
            (Task.SCORE, part.risky, risky * chars + seen, risky * part.images),
            (Task.HIT, part.observations, hit_chars, 0.0),
            (Task.HELPFULNESS, part.prompts - part.risky, benign * chars, benign * part.images),
        ]
        found += [
            Questions(task, answers * count, answers * chars_, answers * images, answers * count * SHORT_REPLY_TOKENS)
            for task, count, chars_, images in asked
        ]
    return found


def _shares(part: Part) -> tuple[float, float]:
    """The risky and the benign share of a part."""
    risky = part.risky / part.prompts if part.prompts else 0.0
    return risky, 1 - risky


def image_tokens(sizes: Iterable[tuple[int, int]], max_pixels: int) -> float:
    """Mean tokens of images of these sizes under a pixel cap; an image at the cap where there are none."""
    pixels = [min(width * height, max_pixels) for width, height in sizes] or [max_pixels]
    return sum(pixels) / len(pixels) / PIXELS_PER_TOKEN


def estimate(questions: Iterable[Questions], chat: ChatConfig, templates: Templates, assumed: Assumptions) -> Estimate:
    """Questions as calls, tokens and USD of the model that is asked; rules have no tokens."""
    again = 1 + assumed.retry_share
    calls = prompt = completion = 0.0
    per_image = 0.0 if isinstance(chat, RulesConfig) else image_tokens(assumed.image_sizes, chat.max_pixels)
    for item in questions:
        calls += again * item.count
        text = item.count * len(templates.texts[item.task]) + item.chars
        prompt += again * (text / CHARS_PER_TOKEN + item.count * CALL_TOKENS + item.images * per_image)
        completion += again * item.reply_tokens
    if isinstance(chat, RulesConfig):
        prompt = completion = 0.0
    cost = cost_usd(price_of(chat), round(prompt), round(completion), 0)
    return Estimate(round(calls), round(prompt), round(completion), cost)


def in_total(estimates: Mapping[str, Estimate]) -> Estimate:
    """The sum of several stages."""
    found = estimates.values()
    return Estimate(
        sum(item.calls for item in found),
        sum(item.prompt_tokens for item in found),
        sum(item.completion_tokens for item in found),
        sum(item.cost_usd for item in found),
    )
