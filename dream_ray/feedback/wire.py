"""What travels between the scorer and those who ask it.

Contract: pydantic models of POST /v1/score, with limits that keep one request from taking a replica down. Client and
server import this one module; neither imports the other.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dream_ray.records import Judgement, Observation

MAX_ITEMS = 64
"""Answers in one request."""
MAX_CHARS = 100_000
"""Characters of one text: well above what a student's context holds."""
MAX_IMAGES = 32
"""Images of one dialogue."""
MAX_OBSERVATIONS = 64
"""Observations of one prompt; each is a call to the judge."""

Text = Annotated[str, Field(max_length=MAX_CHARS)]
Id = Annotated[str, Field(min_length=1, max_length=200)]
Uri = Annotated[str, Field(min_length=1, max_length=4096)]


def explain(problems: Sequence[Any]) -> str:
    """What pydantic found, at most five lines of it: where and what, never the offending text."""
    return "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in problems[:5])


class Wire(BaseModel):
    """Base of the messages: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ScoreItem(Wire):
    """One answer to judge. `images` are uris on a filesystem that the scorer reads too."""

    rollout_id: Id
    prompt_id: Id
    text: Text
    images: tuple[Uri, ...] = Field(max_length=MAX_IMAGES)
    observations: tuple[Observation, ...] = Field(max_length=MAX_OBSERVATIONS)
    response: Text

    @field_validator("observations")
    @classmethod
    def _limit_contents(cls, value: tuple[Observation, ...]) -> tuple[Observation, ...]:
        longest = max((len(item.content) for item in value), default=0)
        if longest > MAX_CHARS:
            raise ValueError(f"an observation's content has {longest} characters, over the limit of {MAX_CHARS}")
        return value


class ScoreRequest(Wire):
    """Answers to judge."""

    items: tuple[ScoreItem, ...] = Field(min_length=1, max_length=MAX_ITEMS)


class ScoreResult(Wire):
    """A judgement, or None with the reason why there is none, the judge's calls and what they cost (see `ErrorRow`)."""

    judgement: Judgement | None
    reason: str | None = None
    detail: str = ""
    attempts: int = 0
    fingerprint: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class ScoreResponse(Wire):
    """One result per item, in the order of the request."""

    results: tuple[ScoreResult, ...]
