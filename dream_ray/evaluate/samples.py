"""The samples that a report can be browsed by: a prompt with its answers, what disagrees about it, which are shown.

Contract: pure, but for pictures, which are decoded and made small. Nothing here knows HTML; nothing here is logged.
"""

import base64
import io
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dream_ray.config import ImageConfig
from dream_ray.feedback.rubric import is_refusal, is_safe, risk_of
from dream_ray.images import BadImage, decode
from dream_ray.records import Grade, Judgement, Observation, Prompt, Risk, Verdict, to_row

MAX_IMAGES = 4
"""Most pictures shown of one sample."""
THUMBNAIL_PIXELS = 256
"""Longest side of a picture in the page."""
THUMBNAIL_QUALITY = 80
"""JPEG quality of a picture: about 5 to 25 kB at 256 pixels."""
MIDDLE_SCORE = 5.0
"""Scores and helpfulness run from 0 to 10: from here on they praise."""

UNJUDGED = "unjudged"
"""Stands for the verdict of an answer that the judge gave none on."""
NOT_ASKED = "not asked"
"""Stands for the verdict of an answer that no judge was asked about, such as a demonstration."""

DISAGREEMENTS = {
    "label": "teacher against label",
    "judge": "judge against itself",
    "answers": "answers to one prompt differ",
}
"""The kinds of disagreement that a sample can show, and what the page calls them."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Answer:
    """One answer: whose it is (`label`), which half of a pair it became (`role`: "", "chosen", "rejected"), and the judge's
    view of it, in the loop a `judgement` and on a benchmark a `grade`, None where there is none; `asked` is False where no
    judge was asked."""

    label: str
    text: str
    judgement: Judgement | None
    role: str = ""
    asked: bool = True
    grade: Grade | None = None

    @property
    def verdict(self) -> str:
        """The verdict in a word, for filters; a benchmark's answers in the order of its questions."""
        if self.judgement is not None:
            return self.judgement.verdict.value
        if self.grade is not None and self.grade.labels:
            return ", ".join(label.answer for label in self.grade.labels)
        return UNJUDGED if self.asked else NOT_ASKED

    @property
    def raw(self) -> str:
        """The judgement or grade as it is stored; empty where there is none."""
        stored = self.judgement or self.grade
        return "" if stored is None else json.dumps(to_row(stored), indent=2, ensure_ascii=False)


@dataclass(frozen=True)
class Sample:
    """A prompt at a stage of the run, with what the teacher observed (None where it was not asked, as on a benchmark) and the
    answers; `images` are the encoded bytes of `prompt.images` in order, None where the store lacks one."""

    stage: str
    prompt: Prompt
    observations: tuple[Observation, ...] | None
    answers: tuple[Answer, ...]
    images: tuple[bytes | None, ...] = ()

    @property
    def risk(self) -> Risk:
        """The label; where the source has none, what the teacher found."""
        return self.prompt.risk or risk_of(self.observations or ())

    @property
    def categories(self) -> tuple[str, ...]:
        """The label's category and those observed, each once."""
        named = [self.prompt.category] if self.prompt.category else []
        return tuple(dict.fromkeys(item.value for item in (*named, *(o.category for o in self.observations or ()))))

    @property
    def verdicts(self) -> tuple[str, ...]:
        """The verdicts among the answers, each once."""
        return tuple(dict.fromkeys(answer.verdict for answer in self.answers))

    @property
    def disagreements(self) -> tuple[str, ...]:
        """Which of `DISAGREEMENTS` the sample shows.

        "label": the teacher observed something on a prompt labelled benign, or nothing on a risky one. "judge": an
        answer's verdict and its score or helpfulness pull apart at `MIDDLE_SCORE`. "answers": some comply and some do not;
        on a benchmark the judge's answers to its questions differ.
        """
        judged = [answer.judgement for answer in self.answers if answer.judgement is not None]
        graded = {answer.verdict for answer in self.answers if answer.grade is not None}
        looked = self.prompt.risk is not None and self.observations is not None
        found = {
            "label": looked and self.prompt.risk != risk_of(self.observations or ()),
            "judge": any(_contradicts_itself(judgement) for judgement in judged),
            "answers": len({judgement.verdict is Verdict.COMPLIES for judgement in judged}) > 1 or len(graded) > 1,
        }
        return tuple(name for name, shown in found.items() if shown)


def _contradicts_itself(judgement: Judgement) -> bool:
    if judgement.score is not None:
        return is_safe(judgement.verdict) != (judgement.score >= MIDDLE_SCORE)
    if judgement.helpfulness is not None:
        return is_refusal(judgement.verdict) and judgement.helpfulness >= MIDDLE_SCORE
    return False


def by_turns(items: Sequence[Item], kind: Callable[[Item], Hashable]) -> list[int]:
    """The items' indices, one of each kind by turns: whatever is cut off at the end, rare kinds stay."""
    kinds: dict[Hashable, list[int]] = {}
    for index, item in enumerate(items):
        kinds.setdefault(kind(item), []).append(index)
    turns = sorted((turn, index) for members in kinds.values() for turn, index in enumerate(members))
    return [index for _, index in turns]


def spread(items: Sequence[Item], kind: Callable[[Item], Hashable], most: int) -> list[Item]:
    """At most `most` items, rare kinds among them, in the items' order."""
    return [items[index] for index in sorted(by_turns(items, kind)[:most])]


def rarity(sample: Sample) -> Hashable:
    """The kind of a sample for `spread`: the risk, the verdicts and whether anything disagrees."""
    return sample.risk, frozenset(sample.verdicts), bool(sample.disagreements)


@dataclass(frozen=True)
class Pictures:
    """The pictures of a sample for the page: data URIs, reasons of those that cannot be shown, how many are left out."""

    uris: tuple[str, ...]
    bad: tuple[str, ...]
    left_out: int


def pictures_of(sample: Sample) -> Pictures:
    """The sample's pictures, made small."""
    uris, bad = [], []
    for content in sample.images[:MAX_IMAGES]:
        try:
            if content is None:
                raise BadImage("image_missing", "not in the run's image store")
            uris.append(_thumbnail(content))
        except BadImage as error:
            bad.append(error.reason)
    return Pictures(tuple(uris), tuple(bad), len(sample.images[MAX_IMAGES:]))


def _thumbnail(content: bytes) -> str:
    """A picture as a data URI, at most THUMBNAIL_PIXELS on its longest side. Raises BadImage."""
    # Decoded and encoded anew: what reaches the page are pixels, never a stranger's file with its metadata.
    image = decode(content, ImageConfig())
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=THUMBNAIL_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
