"""The benchmarks of multiple-choice questions, read without a judge: SIUO's and MMStar.

Contract: values, and `read_option`, which is pure. An answer that names no option is wrong and is counted in "unreadable"
beside the accuracy: it is the policy that failed there, not a judge. (SIUO's script draws an option by chance instead, which
adds luck to the number; MMStar's takes the first letter, which reads the article in "A cat" as option A.)
"""

import re
from collections.abc import Sequence

from dream_ray.evaluate.benchmarks.protocol import Answer, Benchmark, Measure
from dream_ray.records import Prompt

_LABELLED = re.compile(
    r"\b(?:answer|option|choice)\b[\s*_:]*(?:(?:is|would be|must be)\b)?[\s*_:]*(?:option\b)?[\s*_:(]*([A-Za-z])(?![\w'])",
    re.IGNORECASE,
)
_OPENING = re.compile(r"^[\s*_(\[]*([A-Za-z])(?:[)\].:,]|\s*$|\s*\n|[*_]+)")


def read_option(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer names, None where it names none or several.

    In this order: a letter set off at the beginning ("B", "B.", "(B) a cat"), a letter after "answer", "option" or "choice",
    the whole text of exactly one option.
    """
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
    opening = _OPENING.match(text)
    if opening and opening.group(1) in letters:
        return opening.group(1)
    named = {match.group(1).upper() for match in _LABELLED.finditer(text) if not _is_article(match, text)} & set(
        letters
    )
    if named:
        return named.pop() if len(named) == 1 else None
    said = _bare(text)
    same = [letter for letter, option in zip(letters, options, strict=True) if _bare(option) == said]
    return same[0] if len(same) == 1 else None


def _is_article(match: re.Match[str], text: str) -> bool:
    """True for the "a" of "the answer is a cat"; a capital inside a sentence is an option."""
    return match.group(1) == "a" and re.match(r" [a-z]", text[match.end() :]) is not None


def _bare(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _option(prompt: Prompt, answers: Sequence[Answer]) -> str | None:
    return None if answers[0].text is None else read_option(answers[0].text, prompt.options)


def _correct(prompt: Prompt, answers: Sequence[Answer]) -> bool | None:
    return None if answers[0].text is None else _option(prompt, answers) == prompt.correct_option


def _unreadable(prompt: Prompt, answers: Sequence[Answer]) -> bool | None:
    return None if answers[0].text is None else _option(prompt, answers) is None


def _has_key(prompt: Prompt) -> bool:
    return prompt.correct_option is not None


CHOICES = (
    Measure("accuracy", _has_key, _correct, wants_high=True),
    Measure("unreadable", _has_key, _unreadable),
)

SIUO_MCQA = Benchmark(
    name="siuo_mcqa",
    source="siuo",
    wants=lambda prompt: prompt.subset == "mcqa",
    max_tokens=64,
    measures=CHOICES,
    slices=(lambda prompt: prompt.group,),
)

MMSTAR = Benchmark(
    name="mmstar", source="mmstar", max_tokens=64, measures=CHOICES, slices=(lambda prompt: prompt.group,)
)
