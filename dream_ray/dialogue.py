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


def rendered(processor: Any, messages: list[dict[str, Any]]) -> tuple[str, bool]:
    """Messages as the text that the model continues, and whether the tokenizer still has to add its special tokens.

    The rule of transformers' processors, which training follows: no second one where the template has it already.
    """
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    bos = processor.tokenizer.bos_token
    return text, bos is None or not text.startswith(bos)
