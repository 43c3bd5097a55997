"""Replies of chat models to values, and nothing else.

Contract: pure functions from a reply's text to what the task asked for. What cannot be read with certainty raises
`ParseError` with a short reason; there is no default. The last fitting passage counts, because models think aloud first;
what a reply quotes of the text under judgement does not count (quotes.py). The object that a schema wraps around an answer
(forms.py) is read like the bare answer.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from dream_ray.chat.quotes import is_reported, own_words
from dream_ray.records import Observation, Verdict
from dream_ray.taxonomy import normalise_category, normalise_source

T = TypeVar("T")

DETAIL_CHARS = 300
"""How much of an unreadable reply an error keeps."""


class ParseError(ValueError):
    """A reply that does not say what was asked; `reason` is a short word for counting, `detail` the end of the
    reply."""

    def __init__(self, reason: str, text: str):
        super().__init__(f"{reason}: {text[-DETAIL_CHARS:]!r}")
        self.reason = reason
        self.detail = text[-DETAIL_CHARS:]


_KEYS = (("content", "malicious_content"), ("source", "source"), ("category", "risk_category"))
"""Our key and DREAM's for each part of an observation."""

_LIST_START = re.compile(r"\[\s*(?=[\]{])")
_LIST_ENDS = re.compile(r"[ \t}.*`]*$", re.MULTILINE)


def parse_observations(text: str) -> tuple[tuple[Observation, ...], int]:
    """The observations of the last JSON list in a reply, and how many others were dropped as outside the taxonomy.

    The list holds objects with `content`, `source`, `category` (or DREAM's `malicious_content`, `risk_category`).
    Raises ParseError: "no_list", "list_broken" (a list of objects was begun and is not whole JSON, as in a truncated
    reply) or "observation_malformed" (an element without those keys as non-empty strings).
    """
    kept, dropped = [], 0
    for item in _last_list(text):
        content, source, category = (_string(item, ours, dreams, text) for ours, dreams in _KEYS)
        known_source, known_category = normalise_source(source), normalise_category(category)
        if known_source is None or known_category is None:
            dropped += 1
        else:
            kept.append(Observation(content, known_source, known_category))
    return tuple(kept), dropped


def _last_list(text: str) -> list[Any]:
    decoder = json.JSONDecoder()
    found: list[Any] | None = None
    broken = False
    position = 0
    while match := _LIST_START.search(text, position):
        try:
            value, position = decoder.raw_decode(text, match.start())
        except (json.JSONDecodeError, RecursionError):
            broken = True
            position = match.end()
            continue
        # An empty list inside a truncated one ('[{"a": []') or inside a sentence (the user wrote "[]", which ...) must
        # not pass for "nothing risky found".
        if value or (not broken and _LIST_ENDS.match(text, position)):
            found, broken = value, False
    if broken or found is None:
        raise ParseError("list_broken" if broken else "no_list", text)
    return found


def _string(item: Any, ours: str, dreams: str, text: str) -> str:
    value = item.get(ours, item.get(dreams)) if isinstance(item, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise ParseError("observation_malformed", text)
    return value.strip()


_WRAPPED = re.compile(r'^[ \t]*(\{\s*"(?:answer|score)"\s*:[^{}\[\]]*\})(?=\s*(?:```)?\s*\Z)', re.MULTILINE)


def _unwrapped(text: str) -> str:
    """The bare answer of a reply that ends in an object of that one key, as schemas make models write; else the reply."""
    if found := _WRAPPED.search(text):
        try:
            ((_, value),) = json.loads(found.group(1)).items()
        except ValueError:  # not JSON, or more keys than the one
            return text
        return str(value)
    return text


_LABEL = r"(?:(?:final\s+)?(?:answer|verdict|score|rating|grade)\W*(?:is\b\W*)?)"


def _choice(text: str, words: Mapping[str, T], reason: str) -> T:
    """The value of the word that a reply gives as its answer.

    That is the word that fills the last line, follows a label at its end ("... Answer: Yes") or, failing these, opens
    the reply and is set off by punctuation ("Yes, because ..."). A word inside a sentence is no answer: "I cannot say
    yes".
    """
    bare = own_words(_unwrapped(text)).strip()
    lines = [line for line in bare.splitlines() if line.strip(" \t*_`'\"")]
    if not lines:
        raise ParseError("reply_empty", text)
    menu = "|".join(words)
    last: re.Match[str] | None = re.search(rf"(?:^\W*|{_LABEL}){_LABEL}?\W*({menu})\W*$", lines[-1], re.IGNORECASE)
    if last and is_reported(lines[-1], last.start()):
        last = None
    answer = last or re.match(rf"\W*{_LABEL}?({menu})[*_`'\"]*\s*(?:[.,;:!)\u2013\u2014-]|\n|$)", bare, re.IGNORECASE)
    if answer is None:
        raise ParseError(reason, text)
    return words[answer.group(1).lower()]


def parse_yes_no(text: str) -> bool:
    """True for Yes. Raises ParseError "reply_empty" or "no_yes_or_no"."""
    return _choice(text, {"yes": True, "no": False}, "no_yes_or_no")


def parse_verdict(text: str) -> Verdict:
    """The verdict that a reply gives. Raises ParseError "reply_empty" or "no_verdict"."""
    return _choice(text, {verdict.value: verdict for verdict in Verdict}, "no_verdict")


def parse_choice(text: str, words: Sequence[str]) -> str:
    """The one of some words (lower case) that a reply gives. Raises ParseError "reply_empty" or "no_choice"."""
    return _choice(text, {word: word for word in words}, "no_choice")


_NUMBER = r"(?<![\w.,/])([+-]?\d+(?:[.,]\d+)?)"
_END = r"(?![\w%/]|[.,]\d)"
"""A number that goes on as a percentage or as a share of something else ("4/5") is on another scale."""
_SCALE = re.compile(r"\b(?:from\s+|between\s+)?[01]\s*(?:-|\u2013|to|and)\s*10\b(?!\s*/)", re.IGNORECASE)
_OF = re.compile(r"[ \t]*(?:/|\bout[ \t]+of\b)[ \t]*", re.IGNORECASE)
_OF_TEN = re.compile(rf"{_NUMBER}/10{_END}(?!\s+of\b)", re.IGNORECASE)
_LABELLED = re.compile(rf"\b(?:score|rating|grade)\b[^\w\n+-]*(?:(?:is|of)\b[^\w\n+-]*)?{_NUMBER}{_END}", re.IGNORECASE)
_LIST_ITEM = re.compile(r"\s*\d+[.)]\s+\S")
_PLAIN = re.compile(rf"{_NUMBER}{_END}(?=\s*(?:[^\w\s]|$))")
"""A number that ends a clause; in "3 steps" it counts something else."""
_ALONE = re.compile(rf"\W*?{_NUMBER}{_END}\W*")


def parse_score(text: str) -> float:
    """The grade 0-10 of a reply: the last "7/10" or "Score: 7", else the number that is its first line or that ends a
    clause of its last line.

    Raises ParseError: "reply_empty", "no_score", or "score_out_of_range", which no earlier number repairs.
    """
    if not text.strip():
        raise ParseError("reply_empty", text)
    # "on a scale of 0 to 10" holds two numbers that are no grade.
    cleaned = _OF.sub("/", _SCALE.sub(" ", own_words(_unwrapped(text)))).strip()
    graded = [match for pattern in (_OF_TEN, _LABELLED) for match in pattern.finditer(cleaned)]
    graded.sort(key=lambda match: match.start(1), reverse=True)
    own = next((match.group(1) for match in graded if not is_reported(cleaned, match.start())), None)
    found = _plain_grades(cleaned) if own is None else {own}
    if len(found) != 1:
        raise ParseError("no_score", text)
    score = float(found.pop().replace(",", "."))
    if not 0 <= score <= 10:
        raise ParseError("score_out_of_range", text)
    return score


def _plain_grades(text: str) -> set[str]:
    """What numbers without a label may be the grade; several contradict each other."""
    lines = text.splitlines() or [""]
    first = _ALONE.fullmatch(lines[0])
    last = [] if _LIST_ITEM.match(lines[-1]) else list(_PLAIN.finditer(lines[-1]))
    grades = {first.group(1)} if first else set()
    if last and not is_reported(lines[-1], last[-1].start()):
        grades.add(last[-1].group(1))
    return grades


def parse_answer(text: str) -> str:
    """Free text, stripped. Raises ParseError "reply_empty"."""
    if not text.strip():
        raise ParseError("reply_empty", text)
    return text.strip()
