"""From a source's rows to `Prompt`s: every image opened, checked, hashed and stored once by its sha256.

Contract: `blocks` cuts a source into lists of at most `rows_per_part` rows of one split, in constant memory; `Ingest`
turns such a list, as a table, into prompts and errors. A bad image or row costs that row only. Images from the web are
refused.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import pyarrow as pa

from dream_ray import files
from dream_ray.config import ImageConfig
from dream_ray.images import BadImage, placeholder, sha256, storable
from dream_ray.outcomes import outcome_table
from dream_ray.records import ErrorRow, Image, Prompt, Turn, from_row, make_prompt, schema_of, to_row
from dream_ray.sources.raw import BadRow, RawImage, RawPrompt

BAD = "bad"
"""The split of rows that are no prompts, so that their part has a name."""


def blocks(
    rows: Iterable[RawPrompt | BadRow], rows_per_part: int
) -> Iterator[tuple[str, int, list[RawPrompt | BadRow]]]:
    """Rows as (split, index within the split, rows); every list but a split's last is full."""
    waiting: dict[str, list[RawPrompt | BadRow]] = defaultdict(list)
    index: dict[str, int] = defaultdict(int)
    for row in rows:
        split = row.split.value if isinstance(row, RawPrompt) else BAD
        waiting[split].append(row)
        if len(waiting[split]) == rows_per_part:
            yield split, index[split], waiting.pop(split)
            index[split] += 1
    for split, left in waiting.items():
        yield split, index[split], left


def raw_table(rows: Iterable[RawPrompt | BadRow]) -> pa.Table:
    """Rows as a table with the columns `raw` and `error`, exactly one of them set."""
    raws, errors = [], []
    for row in rows:
        bad = isinstance(row, BadRow)
        raws.append(None if bad else to_row(row))
        errors.append(
            to_row(ErrorRow("ingest", row.row_id, row.reason, row.detail, 1)) if isinstance(row, BadRow) else None
        )
    return pa.table(
        {
            "raw": pa.array(raws, pa.struct(list(schema_of(RawPrompt)))),
            "error": pa.array(errors, pa.struct(list(schema_of(ErrorRow)))),
        }
    )


class Ingest:
    """Opens the images of raw prompts and stores them; the callable that Ray Data maps over blocks."""

    def __init__(self, limits: ImageConfig, images_uri: str):
        self._limits, self._images_uri = limits, images_uri

    def __call__(self, block: pa.Table) -> pa.Table:
        outcomes = [self._row(row["raw"], row["error"]) for row in block.to_pylist()]
        return outcome_table(Prompt, outcomes)

    def _row(self, raw: dict[str, object] | None, error: dict[str, object] | None) -> Prompt | ErrorRow:
        if raw is None:
            assert error is not None
            return from_row(ErrorRow, error)
        return self.prompt(from_row(RawPrompt, raw))

    def prompt(self, raw: RawPrompt) -> Prompt | ErrorRow:
        """The prompt with its images stored, or why not."""
        turns = []
        try:
            for turn in raw.turns:
                turns.append(Turn(turn.role, turn.text, tuple(self._store(image) for image in turn.images)))
        except BadImage as bad:
            return ErrorRow("ingest", f"{raw.source}:{raw.source_id}", bad.reason, bad.detail, 1)
        return make_prompt(
            source=raw.source,
            source_id=raw.source_id,
            turns=turns,
            split=raw.split,
            risk=raw.risk,
            risk_origin=raw.risk_origin,
            category=raw.category,
            twin_id=raw.twin_id,
            reference_answer=raw.reference_answer,
            subset=raw.subset,
            group=raw.group,
            options=raw.options,
            correct_option=raw.correct_option,
            safety_warning=raw.safety_warning,
            observations=raw.observations,
        )

    def _store(self, image: RawImage) -> Image:
        """Check an image and put it into the run's store, in the form that every later stage reads. Raises BadImage."""
        origin = image.origin
        content = image.content
        if content is None:
            try:
                content = self._read(image.uri)
            except FileNotFoundError:
                if not image.placeholder:
                    raise BadImage("image_missing", f"{image.uri} does not exist") from None
                content, origin = placeholder(), "placeholder"
        stored, pixels = storable(content, self._limits)
        key = sha256(stored)
        uri = files.join(self._images_uri, key[:2], key)
        if not files.exists(uri):
            files.write_atomic(uri, stored)
        return Image(key, uri, pixels.width, pixels.height, origin)

    def _read(self, uri: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError, and BadImage where it cannot be read otherwise."""
        if uri.startswith(("http://", "https://")):
            raise BadImage("image_remote", "images from the web are not fetched; bring them beside the prompt file")
        try:
            return files.read_bytes(uri, self._limits.max_bytes)
        except FileNotFoundError:
            raise
        except ValueError as error:
            raise BadImage("image_too_many_bytes", str(error)) from None
        except OSError as error:
            raise BadImage("image_unreadable", str(error)) from None
