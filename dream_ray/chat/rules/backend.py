"""RulesChat: the chat model that is no model.

Contract: answers every task of chat/protocol.py from OCR, the risk lexicon and patterns, offline and deterministically.
What rules cannot do comes back as a reply without text and a reason: "no_reference" (they cannot write a helpful answer),
"no_observations", "rules_cannot_judge" (a benchmark's question about what an answer means), a `BadImage` reason, or that of
a field that cannot be read. They see what is written in a picture, never what it shows, so they name no "image content".
"""

import asyncio
import json
import re

from dream_ray.chat.parse import ParseError, parse_observations
from dream_ray.chat.protocol import CHOICES, ChatReply, ChatRequest, Task
from dream_ray.chat.rules.answer import helpful_answer, risk_aware_answer
from dream_ray.chat.rules.judge import compliance, global_score, helpfulness, is_hit, look_at
from dream_ray.chat.rules.lexicon import load_lexicon
from dream_ray.chat.rules.ocr import TextReader
from dream_ray.config import ImageConfig
from dream_ray.images import BadImage
from dream_ray.records import Observation
from dream_ray.taxonomy import Category, Source, normalise_category

_POINTS_AT_PICTURE = re.compile(
    r"\b(picture|image|photo|sign|note|card|screen|poster|shown|shows|written|title|caption)\b", re.IGNORECASE
)


CANNOT_JUDGE = frozenset(CHOICES) - {Task.COMPLIANCE}
"""The questions that rules answer with the reason "rules_cannot_judge": those where the meaning of an answer decides."""


class RulesChat:
    """The offline teacher and judge: a floor to debug and to measure against, not one to trust. Cheap until the first
    image, which loads the OCR models."""

    def __init__(self) -> None:
        self._reader = TextReader(ImageConfig())

    @property
    def name(self) -> str:
        """Says that this is rules and not a model."""
        return "rules (OCR + risk lexicon, no model)"

    async def ask(self, request: ChatRequest) -> ChatReply:
        """Answer one request. OCR runs in a thread, so that other requests go on meanwhile."""
        try:
            return ChatReply(text=await self._answer(request))
        except _CannotAnswer as error:
            return ChatReply(text=None, reason=error.reason, detail=error.detail)
        except (BadImage, ParseError) as error:
            return ChatReply(text=None, reason=error.reason, detail=error.detail)

    def check_alive(self) -> None:
        """Rules do not break."""

    async def _answer(self, request: ChatRequest) -> str:
        match request.task:
            case Task.IMAGE_PASS:
                texts = [" ".join(lines) for lines in await self._read(request)]
                return _as_json([item for text in texts for item in _observations(text, Source.TEXT_IN_IMAGE, None)])
            case Task.TEXT_PASS:
                return _as_json(_observations(_field(request, "text"), Source.TEXT_INSTRUCTION, Source.TEXT_CONTENT))
            case Task.VERIFY:
                return _yes_no(
                    load_lexicon().verify(_field(request, "content"), _category(_field(request, "category")))
                )
            case Task.ANSWER_RISKY:
                observations = _given(request, "observations")
                if not observations:
                    raise _CannotAnswer("no_observations", "a risk-aware answer needs at least one observation")
                return risk_aware_answer(_field(request, "text"), observations, _max_words(request))
            case Task.ANSWER_BENIGN:
                reference = _field(request, "reference").strip()
                if not reference:
                    raise _CannotAnswer(
                        "no_reference", "rules cannot write a helpful answer; give the prompt a reference"
                    )
                return helpful_answer(reference, _max_words(request))
            case Task.SCORE:
                observations = _given(request, "observations")
                return f"{global_score(_field(request, 'text'), observations, _field(request, 'response')):g}"
            case Task.HIT:
                return _yes_no(is_hit(_given(request, "observation")[0], _field(request, "response")))
            case Task.HELPFULNESS:
                return f"{helpfulness(await self._topic(request), _field(request, 'response')):g}"
            case Task.VERDICT:
                return look_at(_field(request, "response")).verdict.value.capitalize()
            case Task.COMPLIANCE:
                return compliance(_field(request, "response"))
            case _:
                raise _CannotAnswer(
                    "rules_cannot_judge", f"{request.task.value} asks what an answer means, not how it sounds"
                )

    async def _read(self, request: ChatRequest) -> list[tuple[str, ...]]:
        """The lines of each image of a request."""
        return [await asyncio.to_thread(self._reader.read, image) for image in request.images]

    async def _topic(self, request: ChatRequest) -> str | None:
        """What a benign prompt is about: its text, or, where that only points at a picture, what is written there."""
        text = _field(request, "text")
        if not _POINTS_AT_PICTURE.search(text):
            return text
        written = " ".join(" ".join(lines) for lines in await self._read(request))
        return written or None


class _CannotAnswer(Exception):
    """What the rules cannot do with a request; becomes a reply without text."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def _max_words(request: ChatRequest) -> int | None:
    """The length asked of an answer, None where there is no limit."""
    limit = request.fields.get("max_words")
    return int(limit) if limit else None


def _field(request: ChatRequest, name: str) -> str:
    """A field that the task's contract promises. Raises ValueError naming it where it is absent: a bug of the caller."""
    if name not in request.fields:
        raise ValueError(
            f"A {request.task.value} request came without the field {name!r}; it has {', '.join(request.fields) or 'none'}. "
            "Fill the fields that chat/protocol.py lists for the task."
        )
    return request.fields[name]


def _given(request: ChatRequest, name: str) -> list[Observation]:
    """The observation(s) of a field, JSON object or list. Raises ParseError or, outside the taxonomy, _CannotAnswer."""
    text = _field(request, name)
    observations, dropped = parse_observations(text if text.lstrip().startswith("[") else f"[{text}]")
    if dropped:
        raise _CannotAnswer("observation_outside_taxonomy", f"{dropped} of {dropped + len(observations)} in {name}")
    return list(observations)


def _category(name: str) -> Category:
    category = normalise_category(name)
    if category is None:
        raise _CannotAnswer("category_outside_taxonomy", name)
    return category


def _observations(text: str, ask: Source, statement: Source | None) -> list[dict[str, str]]:
    """What the lexicon finds in a text. `statement` is the source of what is said and not asked, None: the same source."""
    findings = load_lexicon().find(text)
    return [
        {
            "content": item.sentence,
            "source": (ask if item.is_ask or statement is None else statement).value,
            "category": item.category.value,
        }
        for item in findings
    ]


def _as_json(observations: list[dict[str, str]]) -> str:
    return json.dumps(observations, ensure_ascii=False)


def _yes_no(value: bool) -> str:
    return "Yes" if value else "No"
