"""A prompt as a source gives it: images by uri, not opened yet.

Contract: every reader in this package yields `RawPrompt`s, `BadRow`s and `Repair`s, in the order of its file; `ingest.py`
turns them into `Prompt`s. A reader never opens an image and never stops at a bad row.
"""

from dataclasses import dataclass

from dream_ray.records import Observation, Risk, RiskOrigin, Split
from dream_ray.taxonomy import Category


@dataclass(frozen=True)
class RawImage:
    """Where an image lies and how its pixels came to be (file, rendered, drawn, placeholder).

    `content` is its encoded bytes where the source holds them itself; `uri` then only names it. With `placeholder`, a grey
    picture marked as such stands in where the file is missing.
    """

    uri: str
    origin: str = "file"
    content: bytes | None = None
    placeholder: bool = False


@dataclass(frozen=True)
class RawTurn:
    """One message with its images."""

    role: str
    text: str
    images: tuple[RawImage, ...] = ()


@dataclass(frozen=True)
class RawPrompt:
    """What `Prompt` holds, before its images are opened. `source_id` is the row's key in its file."""

    source: str
    source_id: str
    split: Split
    turns: tuple[RawTurn, ...]
    risk: Risk | None = None
    risk_origin: RiskOrigin | None = None
    category: Category | None = None
    twin_id: str | None = None
    reference_answer: str | None = None
    subset: str | None = None
    group: str | None = None
    options: tuple[str, ...] = ()
    correct_option: str | None = None
    safety_warning: str | None = None
    observations: tuple[Observation, ...] | None = None


@dataclass(frozen=True)
class BadRow:
    """A row of a source that is no prompt: which, a short reason for counting, and the detail."""

    row_id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Repair:
    """What a reader mended in a row that it goes on to yield, or left out of it: which row, a short reason for counting."""

    row_id: str
    reason: str


Row = RawPrompt | BadRow | Repair
"""What a reader yields."""
