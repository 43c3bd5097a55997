"""All formats by name, and the one door through which a source is read.

Contract: `read` yields the rows of a configured source as its reader gives them, with the config's say on them: split,
subsets, observations, missing images. `check_terms` and `check_counts` hold a source against what is published of it.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from dream_ray import files
from dream_ray.config import ConfigError, SourceConfig
from dream_ray.records import Split
from dream_ray.sources.benchmarks import FIGSTEP, FIGSTEP_BENIGN, MMSTAR, SIUO, XSTEST
from dream_ray.sources.format import Format, Terms, find_tables, source_name
from dream_ray.sources.generic import HUGGINGFACE, TABLE, is_hub_name
from dream_ray.sources.jsonl import JSONL
from dream_ray.sources.llava import DREAM, LLAVA
from dream_ray.sources.preference import BEAVERTAILS_V, SPA_VL
from dream_ray.sources.raw import BadRow, RawPrompt, Repair, Row
from dream_ray.sources.scenarios import JAILBREAKV, MM_SAFETYBENCH, MOSSBENCH, MSSBENCH, SAFEMT
from dream_ray.sources.vlguard import VLGUARD

log = logging.getLogger(__name__)

FORMATS: Mapping[str, Format] = {
    layout.name: layout
    for layout in (
        JSONL, TABLE, HUGGINGFACE, LLAVA, DREAM, VLGUARD, SPA_VL, BEAVERTAILS_V, SIUO, FIGSTEP, FIGSTEP_BENIGN,
        MM_SAFETYBENCH, MSSBENCH, MOSSBENCH, XSTEST, JAILBREAKV, SAFEMT, MMSTAR,
    )
}  # fmt: skip


def read(source: SourceConfig) -> Iterator[Row]:
    """The rows of a source. Raises ConfigError where its folder does not hold what the format is read from, and where the
    config wants observations that the format never brings."""
    layout = FORMATS[source.format]
    if source.observations == "use" and not layout.observed:
        raise ConfigError(
            f"The source {source_name(source)!r} has observations = 'use', but rows of the format {layout.name} bring none; "
            f"{' and '.join(other.name for other in FORMATS.values() if other.observed)} can. Leave the key out, and the "
            "teacher looks for the risks; or write your rows in the format jsonl."
        )
    for row in layout.read(source, find_tables(source, layout)):
        if isinstance(row, RawPrompt):
            if not source.subsets or row.subset in source.subsets:
                yield _configured(row, source)
        elif isinstance(row, BadRow) and source.name:
            yield replace(row, row_id=f"{source.name}/{row.row_id}")
        else:
            yield row


def _configured(row: RawPrompt, source: SourceConfig) -> RawPrompt:
    turns = row.turns
    if source.missing_images == "placeholder":
        turns = tuple(
            replace(turn, images=tuple(replace(image, placeholder=True) for image in turn.images)) for turn in turns
        )
    return replace(
        row,
        turns=turns,
        split=source.split or row.split,
        observations=row.observations if source.observations == "use" else None,
    )


def check_terms(source: SourceConfig, where: str) -> str | None:
    """A warning about a source's licence, or None. Raises ConfigError for a use that its licence forbids.

    `where` is the setting's name. Development prompts count as training: they choose the policy.
    """
    layout = FORMATS[source.format]
    if layout.terms is Terms.EVALUATION_ONLY and source.split not in (None, Split.HELD_OUT):
        raise ConfigError(
            f"{where}.split = {source.split.value!r}: {layout.name} may only be evaluated on. Its licence: "
            f"{layout.licence}. Leave split out, or set it to held_out."
        )
    trains = layout.trains if source.split is None else source.split is not Split.HELD_OUT
    if layout.terms is Terms.RESTRICTED and trains:
        return (
            f"{where}: {layout.name} has the licence {layout.licence!r}. See that it allows what you train, and say in the "
            "model card that you trained on it."
        )
    return None


def check_counts(source: SourceConfig, found: Mapping[str, int], bad: int) -> list[str]:
    """What is wrong with the rows counted by subset ("all" for rows without one), a sentence each; empty where all is well.

    `bad` rows could not be read, so their subset is not known: a count may be short by that many.
    """
    complaints = []
    counts = FORMATS[source.format].counts
    for subset, published in counts.items():
        number = found.get(subset, 0)
        if number and not any(number <= size <= number + bad for size in published):
            sizes = " or ".join(f"{size:,}" for size in published)
            complaints.append(f"{source.format} {subset}: {number:,} rows, but {sizes} are published")
    strangers = sorted(set(found) - set(counts)) if counts else []
    if strangers:
        complaints.append(f"{source.format}: subsets that are not published: {', '.join(strangers)}")
    return complaints


def content_digest(source: SourceConfig) -> str:
    """sha256 over what a source's rows are read from: its files' content, or the commit of a data set on the hub."""
    digest = hashlib.sha256()
    if is_hub_name(source):
        from huggingface_hub import HfApi

        digest.update(str(HfApi().dataset_info(source.path).sha).encode())
        return digest.hexdigest()
    tables = find_tables(source, FORMATS[source.format])
    if source.format == HUGGINGFACE.name:
        tables = files.list_tree(source.path)
    for table in tables:
        digest.update(table.rsplit("/", 1)[-1].encode())
        for chunk in files.read_chunks(table):
            digest.update(chunk)
    return digest.hexdigest()


class Census:
    """Counts a source's rows as they pass, for the check against the published counts and for the run's manifest."""

    def __init__(self, source: SourceConfig):
        self._source = source
        self.subsets: Counter[str] = Counter()
        self.repaired: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()

    def watch(self, rows: Iterator[Row]) -> Iterator[RawPrompt | BadRow]:
        """The rows without the repairs. Raises ConfigError after the last one where the counts are wrong."""
        for row in rows:
            if isinstance(row, Repair):
                self.repaired[row.reason] += 1
                continue
            if isinstance(row, BadRow):
                self.bad[row.reason] += 1
            else:
                self.subsets[row.subset or "all"] += 1
            yield row
        complaints = check_counts(self._source, self.subsets, self.bad.total())
        if complaints and not self._source.partial:
            raise ConfigError(
                f"The source {source_name(self._source)!r} ({self._source.path}) is not the published set: "
                f"{'; '.join(complaints)}. A broken download gives wrong numbers: fetch it again, or set partial: true "
                "for this source if only part of the set is meant."
            )
        for complaint in complaints:
            log.warning("%s: %s", source_name(self._source), complaint)
        if self.repaired:
            log.info("%s: mended or left out: %s", source_name(self._source), _listed(self.repaired))


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())
