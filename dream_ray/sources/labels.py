"""The categories of published sets, in the words of the taxonomy.

Contract: `category_of` maps what a data set calls a kind of harm onto one of the nine categories, or gives None where none
of them is meant (economic harm, say). A label that is None enters no breakdown by category; the set's own word stays in
the prompt's `group`.
"""

import re

from dream_ray.taxonomy import Category, normalise_category

_EXACT = {
    "sex": Category.DISCRIMINATION,  # VLGuard: discrimination by sex; its sexual content is "sexually explicit"
    "07-sex": Category.SEXUAL_CONTENT,
}

_WORDS: tuple[tuple[str, Category], ...] = (
    (r"disinfo|misinfo|false info|decept|misleading", Category.DISINFORMATION),
    (r"politic|lobby|election", Category.POLITICAL_INTERFERENCE),
    (r"illegal|crim(e|inal)|malware|fraud|drug|hack|cyber|theft", Category.ILLEGAL_ACTIVITIES),
    (r"legal (opinion|advice)|financ|health|medic|professional|unlicensed|consult", Category.PROFESSIONAL_ADVICE),
    (r"privacy|personal data|surveillance", Category.PRIVACY),
    (r"\bsex|adult|porn|erotic", Category.SEXUAL_CONTENT),
    (r"hate|discriminat|\bbias|\brac(e|ism|ist)\b|stereotyp|insult", Category.DISCRIMINATION),
    (r"imperson|identity theft", Category.IMPERSONATING),
    (r"violen|physical harm|self harm|suicide|terror|weapon|abuse", Category.VIOLENCE),
)
"""Tried in this order: the words of the sets that have a reader here."""


def category_of(label: str | None) -> Category | None:
    """The category that a data set's label names ("02-HateSpeech", "adult_content"), or None."""
    if not label:
        return None
    if exact := normalise_category(label) or _EXACT.get(label.lower()):
        return exact
    # "HateSpeech" and "07-Sex" to words.
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[_\W\d]+", " ", label).lower()
    return next((category for pattern, category in _WORDS if re.search(pattern, words)), None)
