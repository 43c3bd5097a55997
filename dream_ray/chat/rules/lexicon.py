"""Risk finding by a lexicon: which sentences of a text ask for harm, of which category, and a second look at each.

Contract: pure functions over strings; the word lists stand in lexicon.yaml, which says how a term is written. `find`
errs towards finding (it blanks harmless homonyms, nothing more); `verify` looks again at one sentence and turns down
prevention, questions about a concept, fiction, history and the view of a victim. The two together are the rules
backend's text pass and verification. A lexicon knows no meaning: irony, euphemism, other languages and risks that only
picture and text together make are out of its reach.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from dream_ray.taxonomy import Category

_NOT_IN_A_NOUN_PHRASE = (
    "on|in|at|of|for|with|from|to|by|near|and|or|about|as|like|around|against|over|under|than|that|who|which|when|while|"
    "because|so|but|if|into|without|is|are|was|were"
)
_GAPS = {
    " _ ": rf"(?:\W+(?!(?:{_NOT_IN_A_NOUN_PHRASE})\b)[\w'-]+){{0,4}}?\W+",
    " .. ": r"(?:\W+[\w'-]+){0,3}?\W+",
    " ... ": r"(?:\W+[\w'-]+){0,7}?\W+",
}
_DEFENCE_REACH = 5
"""Words between a defending verb and the harm that it still governs ("protect my old parents from phone scams")."""

_ASKS = re.compile(
    r"^(please |kindly |hey |hi |hello |ok |okay |so |and |then |now )*"
    r"(how|what|why|where|when|who|whom|whose|which|can|could|would|will|should|shall|may|is|are|am|do|does|did|i|i'd|i'm|"
    r"we|help|tell|write|give|show|teach|explain|describe|create|make|generate|draft|list|suggest|recommend|provide|find|"
    r"plan|design|build|compose|prepare|let|let's|need|looking|wanted|want|invent|name|identify|prove|convince|advise|"
    r"share|steps|methods|ways|tips|strategies|techniques|guide|instructions|ideas|tricks|best|"
    r"\w+ (ways|steps|methods|tips))\b"
)
_SENTENCE_END = re.compile(r"(?<=[.!?;])[\s\"'\u201d\u2019)]+|\n+")
_NEVER = re.compile(r"(?!)")
_LIST_MARKER = re.compile(r"(?<!\S)(\(?\d{1,2}[.)]|[\u25cf\u2022\u25a1\u25a0\u25cb\u00b7*-])(?=\s|$)")


@dataclass(frozen=True)
class Finding:
    """A sentence that looks risky, as it stood; `matter` holds the words that gave it away, in lower case."""

    sentence: str
    matter: str
    category: Category
    is_ask: bool


@dataclass(frozen=True)
class _CategoryTerms:
    risky: tuple[re.Pattern[str], ...]
    homonyms: re.Pattern[str]
    contexts: re.Pattern[str]


def _inflected(match: re.Match[str]) -> str:
    """The regex for `kill~`: the plain word, its -s, -ed, -ing and -er forms, with English spelling rules."""
    word = match.group(1)
    if word.endswith(")"):
        return word + "(?:s|es|ed|ing|er|ers)?"
    if word.endswith("e"):
        return word[:-1] + "(?:e|es|ed|ing|er|ers)"
    if len(word) > 2 and word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "(?:y|ies|ied|ying|ier|iers)"
    double = word[-1] + "?" if re.search(r"[aeiou][bdgklmnprt]$", word) else ""
    return f"{word}(?:s|es|{double}ed|{double}ing|{double}er|{double}ers)?"


def expand(term: str, sets: Mapping[str, Sequence[str]]) -> str:
    """The regular expression that a lexicon term stands for. Raises ValueError for an unknown set."""

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in sets:
            raise ValueError(
                f"The term {term!r} names the set <{name}>, which is not among {', '.join(sets)}. Add it or mend the name."
            )
        return "(?:" + "|".join(sets[name]) + ")"

    # (?<!...) is a look-behind, (?P<...>) is not used: only a bare <name> is a set.
    text = re.sub(r"(?<!\(\?)<([a-z_]+)>", fill, term)
    text = re.sub(r"(\w+|\))~", _inflected, text)
    for mark, gap in _GAPS.items():
        text = text.replace(mark, gap)
    # A plain space stays one: normalise() leaves no other white space, and a look-behind needs a fixed width.
    return text


def _bounded(expression: str) -> str:
    start = "" if expression.startswith("^") else r"(?<!\w)"
    end = "" if expression.endswith("$") else r"(?!\w)"
    return f"{start}(?:{expression}){end}"


def any_of(terms: Sequence[str], sets: Mapping[str, Sequence[str]]) -> re.Pattern[str]:
    """One pattern for many terms, written as lexicon.yaml says; it never matches where there are none."""
    if not terms:
        return _NEVER
    return re.compile("|".join(_bounded(expand(term, sets)) for term in terms))


class Lexicon:
    """Compiled word lists. Make one by `load_lexicon()`; a tree of another shape raises KeyError or ValueError."""

    def __init__(self, tree: Mapping[str, Any]):
        sets = tree["sets"]
        self._categories: dict[Category, _CategoryTerms] = {}
        for name, roles in tree["categories"].items():
            self._categories[Category(name)] = _CategoryTerms(
                risky=tuple(re.compile(_bounded(expand(term, sets))) for term in roles["risky"]),
                homonyms=any_of(roles["homonyms"], sets),
                contexts=any_of(roles["contexts"], sets),
            )
        self._second_look = {name: any_of(terms, sets) for name, terms in tree["second_look"].items()}

    def find(self, text: str) -> list[Finding]:
        """The risky-looking sentences of a text in order, each in its best category, one finding per category."""
        findings: dict[Category, Finding] = {}
        for sentence in sentences(text):
            plain = normalise(sentence)
            best: tuple[int, Category, list[tuple[int, int]]] | None = None
            for category in self._categories:
                spans = self._spans(plain, category)
                if spans and (best is None or len(spans) > best[0]):
                    best = (len(spans), category, spans)
            if best is not None and best[1] not in findings:
                start, end = max(best[2], key=lambda span: span[1] - span[0])
                findings[best[1]] = Finding(
                    sentence, plain[start:end], best[1], bool(_ASKS.match(plain)) or "?" in sentence
                )
        return list(findings.values())

    def verify(self, content: str, category: Category) -> bool:
        """The second look: could this content do harm of this category? False where every sign reads harmlessly."""
        return any(self._harmful(normalise(sentence), category) for sentence in sentences(content))

    def _spans(self, plain: str, category: Category) -> list[tuple[int, int]]:
        """Where a category's risky terms match a normalised sentence, one span per term that does."""
        terms = self._categories[category]
        # A blanked phrase keeps its length, so that spans stay valid in the sentence itself.
        text = terms.homonyms.sub(lambda match: "\u00a4" * len(match.group()), plain)
        matches = (pattern.search(text) for pattern in terms.risky)
        return [match.span() for match in matches if match]

    def _harmful(self, plain: str, category: Category) -> bool:
        spans = self._spans(plain, category)
        if not spans or self._has("victim", plain):
            return False
        if self._categories[category].contexts.search(plain):
            return False
        if category in _FICTION_EXCUSES and self._has("fiction", plain):
            return False
        if category is not Category.SEXUAL_CONTENT and self._has("history", plain) and not self._has("way", plain):
            return False
        # "What is the best way to ..." asks for the way, not for the concept.
        if self._has("concept", plain) and not self._has("way", plain) and not _accuses_a_group(plain, category):
            return False
        return not all(self._defended(plain, span) for span in spans)

    def _defended(self, plain: str, span: tuple[int, int]) -> bool:
        """Is this match governed by a defending verb before it ("prevent ...") or a noun after it ("... hotline")?"""
        for match in self._second_look["defend"].finditer(plain[: span[0]]):
            if len(plain[match.end() : span[0]].split()) <= _DEFENCE_REACH:
                return True
        following = " ".join(plain[span[1] :].split()[:3])
        return self._has("after", following)

    def _has(self, role: str, plain: str) -> bool:
        return self._second_look[role].search(plain) is not None


_FICTION_EXCUSES = (Category.VIOLENCE, Category.ILLEGAL_ACTIVITIES, Category.IMPERSONATING, Category.PRIVACY)
"""A game or a novel makes these harmless; a sexual, hateful or false text stays what it is inside a story."""


def _accuses_a_group(plain: str, category: Category) -> bool:
    """True for "why are <group> so ...": the form of a concept question, the matter of an accusation."""
    about_harm = (
        r"\b(wrong|harmful|illegal|bad|dangerous|offensive|happen|exist|matter|still|unfair|hurtful|discriminat\w+)\b"
    )
    return category is Category.DISCRIMINATION and plain.startswith("why ") and not re.search(about_harm, plain)


def sentences(text: str) -> list[str]:
    """A text cut into sentences, without list markers ("1.", bullets) and surrounding space; never an empty one."""
    parts = _SENTENCE_END.split(_LIST_MARKER.sub(" ", text))
    return [stripped for part in parts if (stripped := " ".join(part.split()))]


def normalise(sentence: str) -> str:
    """Lower case, straight quotes, single spaces, no closing punctuation: what the terms are written for."""
    plain = sentence.lower().replace("\u2019", "'").replace("\u2018", "'").replace("\u201c", '"').replace("\u201d", '"')
    return " ".join(plain.split()).strip(" .!?;:\"'-")


@cache
def load_lexicon() -> Lexicon:
    """The lexicon that ships with the package."""
    text = resources.files(__package__).joinpath("lexicon.yaml").read_text(encoding="utf-8")
    return Lexicon(yaml.safe_load(text))
