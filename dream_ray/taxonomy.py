"""The risk taxonomy of DREAM: where a risk stands (4 sources) and what it is (9 categories).

Contract: the only place that spells the names. `normalise_source` and `normalise_category` map what a teacher or a data
set wrote onto the taxonomy and return None for what is not in it; the caller drops and counts those. Imports nothing of
this project.
"""

from enum import StrEnum


class Source(StrEnum):
    """Which part of the prompt carries the risk."""

    TEXT_INSTRUCTION = "text instruction"
    TEXT_CONTENT = "text content"
    IMAGE_CONTENT = "image content"
    TEXT_IN_IMAGE = "text in the image"

    @property
    def in_image(self) -> bool:
        """True for the two sources that only the pixels carry."""
        return self in (Source.IMAGE_CONTENT, Source.TEXT_IN_IMAGE)


class Category(StrEnum):
    """What kind of harm the risk is."""

    ILLEGAL_ACTIVITIES = "Illegal activities"
    VIOLENCE = "Violence"
    PRIVACY = "Privacy"
    DISCRIMINATION = "Discrimination"
    SEXUAL_CONTENT = "Sexual content"
    DISINFORMATION = "Disinformation"
    IMPERSONATING = "Impersonating"
    POLITICAL_INTERFERENCE = "Political interference"
    PROFESSIONAL_ADVICE = "Professional advice"


_CATEGORY_ALIASES = {
    "illegal activity": Category.ILLEGAL_ACTIVITIES,
    "privacy violation": Category.PRIVACY,
    "sexually explicit": Category.SEXUAL_CONTENT,
    "sexual": Category.SEXUAL_CONTENT,
    "impersonation": Category.IMPERSONATING,
    # Not one of the nine: the DREAM release uses it on 26 observations about smoking and medicines.
    "health": Category.PROFESSIONAL_ADVICE,
}


def normalise_source(text: str) -> Source | None:
    """Map a free spelling of a source ("Text instructions", "text in image") onto the taxonomy, or None."""
    key = " ".join(text.lower().replace("_", " ").replace("-", " ").split())
    key = key.replace("text in image", "text in the image")
    for source in Source:
        if key in (source.value, source.value + "s"):
            return source
    return None


def normalise_category(text: str) -> Category | None:
    """Map a free spelling of a category ("privacy violation", "VIOLENCE") onto the taxonomy, or None."""
    key = " ".join(text.lower().replace("_", " ").replace("-", " ").split())
    for category in Category:
        if key == category.value.lower():
            return category
    return _CATEGORY_ALIASES.get(key)
