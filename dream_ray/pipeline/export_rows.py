"""The rows of an exported data set: the columns that TRL reads and, beside them, those that LLaMA-Factory reads.

Contract: pure. TRL's `prompt`, `completion`, `chosen` and `rejected` are lists of messages whose content lists parts, images
before the text of their turn, as training here sees them. LLaMA-Factory wants plain text with `<image>` where an image
stands: `dialogue`, `chosen_answer` and `rejected_answer`. TRL leaves these aside; `messages` or `conversations` it would take
for its own. `images` holds the encoded pictures themselves.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dream_ray.dialogue import to_messages
from dream_ray.records import Demonstration, PreferencePair, Prompt, Turn

DEMONSTRATIONS, PREFERENCES = "demonstrations", "preferences"
"""The two configurations of the data set, and their folders."""

IMAGE_MARK = "<image>"
"""LLaMA-Factory's placeholder of an image."""

_STRING, _NUMBER = {"dtype": "string", "_type": "Value"}, {"dtype": "float64", "_type": "Value"}
_MESSAGES = [{"role": _STRING, "content": [{"type": _STRING, "text": _STRING}]}]
_PLAIN = {"role": _STRING, "content": _STRING}
_LABELS = {"prompt_id": _STRING, "source": _STRING, "risk": _STRING}
_IMAGES = {"images": [{"_type": "Image"}]}

FEATURES: dict[str, dict[str, Any]] = {
    DEMONSTRATIONS: {"prompt": _MESSAGES, "completion": _MESSAGES, **_IMAGES, "dialogue": [_PLAIN], **_LABELS},
    PREFERENCES: {
        "prompt": _MESSAGES, "chosen": _MESSAGES, "rejected": _MESSAGES, **_IMAGES, "dialogue": [_PLAIN],
        "chosen_answer": _PLAIN, "rejected_answer": _PLAIN, **_LABELS,
        "round": {"dtype": "int64", "_type": "Value"}, "chosen_reward": _NUMBER, "rejected_reward": _NUMBER,
    },
}  # fmt: skip
"""The columns as the datasets library describes them. Lists are plain JSON lists: the name that it gives them changed
between versions 3 and 4, and all versions read this."""


def schema(kind: str) -> pa.Schema:
    """The arrow schema, with the description that makes datasets decode the images."""
    fields = [pa.field(name, _arrow(feature)) for name, feature in FEATURES[kind].items()]
    described = json.dumps({"info": {"features": FEATURES[kind]}})
    return pa.schema(fields, metadata={"huggingface": described})


def _arrow(feature: Any) -> pa.DataType:
    if isinstance(feature, list):
        return pa.list_(_arrow(feature[0]))
    if feature.get("_type") == "Image":
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if feature.get("_type") == "Value":
        return pa.type_for_alias(feature["dtype"])
    return pa.struct([(name, _arrow(inner)) for name, inner in feature.items()])


def demonstration(prompt: Prompt, answer: Demonstration, images: Sequence[bytes]) -> dict[str, Any]:
    """A row to fine-tune on."""
    return {
        **_asked(prompt, images),
        "completion": _answer(answer.answer),
        "dialogue": [*_plain(prompt.turns), _spoken(answer.answer)],
        "risk": answer.risk.value,
    }


def preference(prompt: Prompt, pair: PreferencePair, images: Sequence[bytes], number: int) -> dict[str, Any]:
    """A row to prefer by; `number` is the round's."""
    return {
        **_asked(prompt, images),
        "chosen": _answer(pair.chosen),
        "rejected": _answer(pair.rejected),
        "dialogue": _plain(prompt.turns),
        "chosen_answer": _spoken(pair.chosen),
        "rejected_answer": _spoken(pair.rejected),
        "risk": pair.risk.value,
        "round": number,
        "chosen_reward": pair.chosen_reward,
        "rejected_reward": pair.rejected_reward,
    }


def _asked(prompt: Prompt, images: Sequence[bytes]) -> dict[str, Any]:
    return {
        "prompt": to_messages(prompt.turns),
        "images": [
            {"bytes": content, "path": image.sha256} for content, image in zip(images, prompt.images, strict=True)
        ],
        "prompt_id": prompt.prompt_id,
        "source": prompt.source,
    }


def _answer(text: str) -> list[dict[str, Any]]:
    return to_messages([Turn("assistant", text, ())])


def _plain(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": IMAGE_MARK * len(turn.images) + _unmarked(turn.text)} for turn in turns]


def _spoken(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": _unmarked(text)}


def _unmarked(text: str) -> str:
    """The text without what would be taken for an image that is not there."""
    return text.replace(IMAGE_MARK, "< image >")
