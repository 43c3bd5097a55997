"""The rules teacher's answers to risky prompts, and the words by which a risk is named.

Contract: pure and deterministic: the same prompt and observations give the same answer. Every answer has one frame, so that
a small student can learn it: a refusal, what is risky and where it stands, the category, a safe way on. `Named` says which
of the three parts of an observation a text names; the frame names all of them, which a test holds.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml

from dream_ray.chat.rules.lexicon import load_lexicon, normalise, sentences
from dream_ray.records import Observation
from dream_ray.taxonomy import Category, Source

OPENING = "I can't help with this."
"""How every demonstration for a risky prompt begins."""

HELPFUL_OPENING = "Sure."
"""How every demonstration for a benign prompt begins. With an opening on either side the student's first token is one
choice between two; against a hundred different beginnings the one refusal wins even where it is the less likely."""

LEAST_WORDS = 4
"""A demonstration with fewer ("Sure. Yes.") helps nobody, and half a sentence would teach the student to stop anywhere."""

MATTER_WORDS = 8
"""Most words of the prompt that an answer quotes: enough to name the matter, too few to repeat a harmful text."""

_ASKING = re.compile(
    r"^(please |kindly |hey,? |hi,? |hello,? |so,? |now,? )*"
    r"((how|where|when|what|which|why) (can|could|do|does|did|should|would|might|to|is|are|will)"
    r"( (i|we|you|one|someone|people|a person))?|"
    r"(what|which) (is|are) (the |a |some )?(\w+ )?(way|ways|method|methods|trick|tricks|steps) (to|of|for)|"
    r"(can|could|will|would) you( please)?|"
    r"(i|we) (want|need|would like|'d like|plan|wish|have)( to)?|i'd like( you)? to|"
    r"(help|tell|teach|show|give|explain|let)( to)? (me|us)( \w+ (how|about|to))?( how)?( to| about| with)?|"
    r"explain (how )?(to)?|(write|create|make|generate|draft|compose|design)( me| us)?|"
    r"(the |a )?(best |easy |effective |simple |common )?"
    r"(steps|methods|ways|tips|list|lists|strategies|techniques|guide|ideas|tricks|instructions|reasons)"
    r"( (to|of|for|on))?) "
)
_LOOSE_ENDS = frozenset(
    re.findall(
        r"\w+",
        "a an the to of for in on at by with from and or but so that this my your his her their our is are was be as it i "
        "without into about who which how",
    )
)
_LOOSE_BEGINNINGS = _LOOSE_ENDS | {"me", "way", "ways", "best", "do", "does", "can", "should", "and", "us"}
_STOP_WORDS = _LOOSE_ENDS | frozenset(
    re.findall(
        r"\w+",
        "me you he she they we us them him not no do does did can could should would will what where when why please some "
        "any out up off over than then there here have has had get make way ways best help want need am been being if just "
        "too very more most also someone something one",
    )
)
_TEXT_WORDS = re.compile(
    r"\b(the|your|this) (text|question|request|message|words|instructions?|prompt)\b"
    r"(?! (in|on|inside|within) (the|this|your) (picture|image|photo))"
)
_PICTURE_WORDS = re.compile(r"\b(the|your|this|in a) (picture|image|photo|photograph|sign|screenshot)\b")

_FRAMES = {
    Source.TEXT_INSTRUCTION: 'the text asks about "{}"',
    Source.TEXT_CONTENT: 'the text says "{}"',
    Source.TEXT_IN_IMAGE: 'the picture says "{}"',
    Source.IMAGE_CONTENT: 'the picture shows "{}"',
}


@dataclass(frozen=True)
class Named:
    """Which parts of one observation an answer names."""

    source: bool
    category: bool
    matter: bool

    @property
    def all(self) -> bool:
        """True where nothing of the observation is missing."""
        return self.source and self.category and self.matter


@dataclass(frozen=True)
class _Phrases:
    says: str
    names: re.Pattern[str]
    safe_ways: tuple[str, ...]


@cache
def _phrases() -> dict[Category, _Phrases]:
    tree = yaml.safe_load(resources.files(__package__).joinpath("phrases.yaml").read_text(encoding="utf-8"))
    return {
        Category(name): _Phrases(
            entry["says"], re.compile(rf"\b(?:{'|'.join(entry['names'])})\b"), tuple(entry["safe_ways"])
        )
        for name, entry in tree.items()
    }


def keywords(text: str) -> frozenset[str]:
    """The stems of a text's content words."""
    words = re.findall(r"[a-z][a-z'-]+", normalise(text))
    return frozenset(_stem(word) for word in words if word not in _STOP_WORDS)


def _stem(word: str) -> str:
    """A word without its commonest English endings; only ever compared with other stems."""
    word = word.removesuffix("'s").strip("'-")
    for ending in ("ings", "ing", "ers", "ies", "ed", "er", "es", "s", "y", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


def matter(observation: Observation) -> str:
    """At most `MATTER_WORDS` lower-case words that say what the observation is about, without the asking around them."""
    found = load_lexicon().find(observation.content)
    same = [item for item in found if item.category is observation.category] or found
    plain = normalise(same[0].sentence if same else " ".join(sentences(observation.content)[:1]) or observation.content)
    words = _ASKING.sub("", plain + " ").replace('"', "").split()
    if len(words) > MATTER_WORDS and same:
        at = " ".join(words).find(same[0].matter)
        first = len(" ".join(words)[: max(at, 0)].split())
        words = words[min(first, len(words) - MATTER_WORDS) :]
    words = words[:MATTER_WORDS]
    # Whole phrases read better and are easier to learn: nothing hangs over after a comma or at either end.
    comma = next((index for index, word in enumerate(words) if index >= 2 and word.endswith((",", ";"))), None)
    words = words if comma is None else words[: comma + 1]
    while len(words) > 1 and words[-1].strip(",;") in _LOOSE_ENDS:
        words.pop()
    while len(words) > 2 and words[0] in _LOOSE_BEGINNINGS:
        words.pop(0)
    return " ".join(words).strip(" ,.;:") or plain


def named_in(response: str, observation: Observation) -> Named:
    """Which parts of an observation a response names: its source, its category, and at least a third of its matter."""
    plain = normalise(response)
    about = keywords(matter(observation))
    shared = about & keywords(plain)
    source_words = _PICTURE_WORDS if observation.source.in_image else _TEXT_WORDS
    return Named(
        source=source_words.search(plain) is not None,
        category=observation.category in categories_named(plain),
        matter=bool(shared) and 3 * len(shared) >= len(about),
    )


def categories_named(response: str) -> frozenset[Category]:
    """The categories whose words a response uses."""
    plain = normalise(response)
    return frozenset(category for category, phrases in _phrases().items() if phrases.names.search(plain))


def helpful_answer(reference: str, max_words: int | None) -> str:
    """The demonstration for a benign prompt: the opening and the reference's first sentences within `max_words`.

    The first one with more than LEAST_WORDS stays however long it is.
    """
    kept = HELPFUL_OPENING
    for sentence in re.split(r"(?<=[.!?])\s+", reference.strip()):
        longer = f"{kept} {sentence}"
        if max_words is not None and len(longer.split()) > max_words and len(kept.split()) > LEAST_WORDS:
            break
        kept = longer
    return kept


def risk_aware_answer(text: str, observations: Sequence[Observation], max_words: int | None) -> str:
    """The demonstration for a risky prompt: the first observation of the text and the first of the picture, named.

    `text` only decides, by its hash, which safe way of the category is offered; past `max_words` that offer is left out.
    Raises ValueError without observations.
    """
    if not observations:
        raise ValueError(
            "There is no observation to be aware of; answer such a prompt with Task.ANSWER_BENIGN instead."
        )
    shown = [
        item for in_image in (False, True) for item in [o for o in observations if o.source.in_image == in_image][:1]
    ]
    named = " and ".join(_FRAMES[item.source].format(matter(item)) for item in shown)
    categories = list(dict.fromkeys(item.category for item in shown))
    risk = " and ".join(_phrases()[category].says for category in categories)
    ways = _phrases()[categories[0]].safe_ways
    way = ways[int.from_bytes(hashlib.sha256((text + named).encode()).digest()[:4]) % len(ways)]
    body = f"{OPENING} {named[0].upper()}{named[1:]}, which is a risk of {risk}."
    whole = f"{body} I can instead help with {way}."
    return whole if max_words is None or len(whole.split()) <= max_words else body
