"""A prompt as the chat messages that transformers' processors, TRL and vLLM read.

Contract: the one rendering of a dialogue, so that sampling and training see the same tokens. Images come before the text
of their turn.
"""

from collections.abc import Sequence
from typing import Any

from dream_ray.records import Turn


def to_messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Messages whose content lists one {"type": "image"} per image, then the text; the pixels travel beside them."""
    return [
        {
            "role": turn.role,
            "content": [*({"type": "image"} for _ in turn.images), {"type": "text", "text": turn.text}],
        }
        for turn in turns
    ]
