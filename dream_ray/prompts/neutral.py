"""Control tokens of chat templates in text that is not ours, made harmless.

Contract: pure. A chat template's tokens ("<|im_end|>", "<end_of_turn>", "[/INST]") that a prompt or an answer spells out
would be read by most engines and endpoints as the real thing: the judge's turn would end inside the answer under
judgement. `neutralised` puts an invisible character into whatever has their shape; `restored` takes it out again.

Why by text: an endpoint tokenises on its side, so only the text is ours to change. Why by shape and not by a model's list:
an endpoint does not tell its list. Angle brackets around one word are broken too where they are HTML; the character is not
seen, and what the model quotes comes back whole.
"""

import re

BREAK = "\u2060"
"""WORD JOINER: invisible, kept by every tokenizer's normalisation, and in no control token."""

_OPENING = re.compile(
    r"<(?=[|\uff5c]"  # <|im_end|>, and DeepSeek's with fullwidth bars
    r"|/?[A-Za-z_][\w\u2581.\-]*>)"  # <end_of_turn>, </s>, <image>
    r"|\[(?=/?[A-Z][A-Z_]*\d*\])"  # [/INST], [IMG_BREAK], [SEP]
)


def neutralised(text: str) -> str:
    """The text with a BREAK after the opening bracket of whatever looks like a control token."""
    return _OPENING.sub(lambda match: match.group() + BREAK, text)


def restored(text: str) -> str:
    """A model's reply as it would be had nothing been neutralised."""
    return text.replace(BREAK, "")
