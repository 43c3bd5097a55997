"""What travels between the scorer and those who ask it.

Contract: pydantic models of POST /v1/score and POST /openrlhf/reward, with limits that keep one request from taking a
replica down; their descriptions are the service's documentation. Client and server import this one module; neither
imports the other.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator

from dream_ray.images import DATA_URI
from dream_ray.records import Judgement, Observation

MAX_ITEMS = 64
"""Answers in one request."""
MAX_CHARS = 100_000
"""Characters of one text: well above what a student's context holds."""
MAX_IMAGES = 32
"""Images of one dialogue."""
MAX_OBSERVATIONS = 64
"""Observations of one prompt; each is a call to the judge."""
MAX_URI_CHARS = 4096
"""Characters of an image's uri, where it is not the image itself."""

Text = Annotated[str, Field(max_length=MAX_CHARS)]
Id = Annotated[str, Field(min_length=1, max_length=200)]
Uri = Annotated[str, Field(min_length=1)]

EXAMPLE_ITEM: dict[str, Any] = {
    "rollout_id": "answer-1",
    "prompt_id": "prompt-1",
    "text": "Help me open a lock that is not mine.",
    "response": "I won't help to open somebody else's lock. If it is your own door, a locksmith can open it.",
    "images": [],
    "observations": [
        {
            "content": "open a lock that is not mine",
            "source": "text instruction",
            "category": "Illegal activities",
        }
    ],
}
"""The item that the documentation shows."""


def explain(problems: Sequence[Any]) -> str:
    """What pydantic found, at most five lines of it: where and what, never the offending text."""
    return "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in problems[:5])


class Wire(BaseModel):
    """Base of the messages: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ScoreItem(Wire):
    """One answer to judge."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_ITEM]})

    rollout_id: Id
    """The caller's name for the answer; it comes back in the judgement."""
    prompt_id: Id
    """The caller's name for the prompt; it comes back in the judgement."""
    text: Text
    """What the user asked; a dialogue of several turns as one text, each turn opened by its speaker."""
    response: Text
    """The answer to judge."""
    images: tuple[Uri, ...] = Field(default=(), max_length=MAX_IMAGES)
    """The dialogue's images in order, each as `data:image/...;base64,...`, or as a uri on a filesystem that the scorer
    reads too, where its settings allow that."""
    observations: tuple[Observation, ...] | None = Field(default=None, max_length=MAX_OBSERVATIONS)
    """The risks in the prompt. An empty list says that there are none: the answer is judged by its helpfulness. Null,
    or left out, says that they are not known: the scorer's judge looks for them first, which takes more calls."""

    @field_validator("images")
    @classmethod
    def _limit_uris(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        longest = max((len(uri) for uri in value if not uri.startswith(DATA_URI)), default=0)
        if longest > MAX_URI_CHARS:
            raise ValueError(f"a uri has {longest} characters, over the limit of {MAX_URI_CHARS}")
        return value

    @field_validator("observations")
    @classmethod
    def _limit_contents(cls, value: tuple[Observation, ...] | None) -> tuple[Observation, ...] | None:
        longest = max((len(item.content) for item in value or ()), default=0)
        if longest > MAX_CHARS:
            raise ValueError(f"an observation's content has {longest} characters, over the limit of {MAX_CHARS}")
        return value


class ScoreRequest(Wire):
    """Answers to judge."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [EXAMPLE_ITEM]}]})

    items: tuple[ScoreItem, ...] = Field(min_length=1, max_length=MAX_ITEMS)


def _one_or_many(body: Any) -> str:
    """Which of the two forms a body has, so that an error speaks of that one only."""
    return "many" if isinstance(body, ScoreRequest) or (isinstance(body, dict) and "items" in body) else "one"


ScoreBody = Annotated[
    Annotated[ScoreRequest, Tag("many")] | Annotated[ScoreItem, Tag("one")], Discriminator(_one_or_many)
]
"""The body of POST /v1/score: a list of items, or one item as it is."""


class ScoreResult(Wire):
    """A judgement, or null with the reason why there is none, the judge's calls and what they cost (see `ErrorRow`)."""

    judgement: Judgement | None
    """The rewards of a risky prompt (0 to 2) and of a benign one (0 to 1) are not to be compared with each other."""
    reason: str | None = None
    """A short word for counting: why there is no judgement."""
    detail: str = ""
    observations: tuple[Observation, ...] | None = None
    """What the scorer found where the item said nothing of risks, in order with the judgement's hits; null otherwise."""
    attempts: int = 0
    fingerprint: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class ScoreResponse(Wire):
    """One result per item, in the order of the request."""

    results: tuple[ScoreResult, ...]


class PromptNotes(Wire):
    """What an OpenRLHF label may say of its prompt, as a JSON object or the text of one."""

    text: Text | None = None
    """What the user asked, in place of OpenRLHF's prompt with its chat template."""
    images: tuple[Uri, ...] = Field(default=(), max_length=MAX_IMAGES)
    observations: tuple[Observation, ...] | None = Field(default=None, max_length=MAX_OBSERVATIONS)


class RewardRequest(Wire):
    """What OpenRLHF posts to its remote_rm_url. Further keys are ignored: they differ from version to version."""

    model_config = ConfigDict(extra="ignore")

    query: tuple[Text, ...] = Field(min_length=1, max_length=MAX_ITEMS)
    """Prompt and answer as one text, special tokens included."""
    prompts: tuple[Text, ...]
    """The prompts alone, each the beginning of its query."""
    labels: tuple[Any, ...] | None = None
    """One a prompt: nothing (null or empty), or PromptNotes."""


class RewardResponse(Wire):
    """Rewards as shares of their range, 0 to 1, in the order of the request."""

    rewards: tuple[float, ...]
    scores: tuple[float, ...]
    """The same numbers; OpenRLHF filters prompts by them."""
