"""What a source holds, counted: the check that `dream-ray sources FORMAT PATH` makes.

Contract: `survey` reads a source whole, opens no image, and returns counts only: no text of a row, which may be risky.
"""

from collections import Counter
from dataclasses import dataclass, field

from dream_ray import files
from dream_ray.config import SourceConfig
from dream_ray.sources.raw import BadRow, RawPrompt, Repair
from dream_ray.sources.registry import FORMATS, check_counts, read


@dataclass
class Survey:
    """What a source holds. `images` counts the different files that rows name, `missing` those that are not there;
    pictures inside a table are in neither. `observations` stand on `observed` prompts, some of which may have an empty list."""

    prompts: int = 0
    labels: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    """Rows by split, risk, subset and category; "-" where there is none."""
    turns: Counter[int] = field(default_factory=Counter)
    observed: int = 0
    observations: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    first_bad: list[str] = field(default_factory=list)
    images: int = 0
    missing: int = 0
    complaints: list[str] = field(default_factory=list)


def survey(source: SourceConfig) -> Survey:
    """Read a source and count. Raises ConfigError where its folder does not hold what the format is read from."""
    found = Survey()
    named: set[str] = set()
    subsets: Counter[str] = Counter()
    # Observations are counted whether they will be used or not, so that nobody overlooks that they are there.
    observed = FORMATS[source.format].observed
    for row in read(source.model_copy(update={"observations": "use"}) if observed else source):
        if isinstance(row, Repair):
            found.repaired[row.reason] += 1
        elif isinstance(row, BadRow):
            found.bad[row.reason] += 1
            found.first_bad = [*found.first_bad, f"{row.row_id}: {row.detail}"][:3]
        else:
            _count(found, row)
            subsets[row.subset or "all"] += 1
            named.update(image.uri for turn in row.turns for image in turn.images if image.content is None)
    found.images, found.missing = len(named), _missing(sorted(named))
    found.complaints = check_counts(source, subsets, found.bad.total())
    return found


def _count(found: Survey, row: RawPrompt) -> None:
    found.prompts += 1
    found.labels[(row.split, row.risk or "-", row.subset or "-", row.category or "-")] += 1
    found.turns[len(row.turns)] += 1
    found.observed += row.observations is not None
    found.observations += len(row.observations or ())


def _missing(uris: list[str]) -> int:
    """How many of the files are not there; those on the web are, since they are not fetched."""
    return sum(uri.startswith(("http://", "https://")) or not files.is_file(uri) for uri in uris)
