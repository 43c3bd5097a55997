"""Tables of any layout, by a mapping of columns: CSV, TSV, JSON lines, JSON, parquet, and Hugging Face data sets.

Contract: each row becomes a prompt of one user turn. A column that the config names must be there; one that it does not
name is read where it is there. Labels keep the table's own words in `group` where they are none of the nine categories.
Nothing that a data set brings is executed.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field, ValidationError

from dream_ray import files
from dream_ray.config import ConfigError, SourceConfig
from dream_ray.records import Risk, RiskOrigin, Split
from dream_ray.sources.format import Format, folder_of, image_in, one_turn
from dream_ray.sources.labels import category_of
from dream_ray.sources.raw import BadRow, Row
from dream_ray.sources.tables import Columns, problem, rows


class _Labels(Columns):
    """The mapped columns of a row, but for the image and the raw risk label."""

    id: str | None = None
    text: str = Field(min_length=1)
    split: Split = Split.TRAIN
    risk_origin: RiskOrigin | None = None
    category: str | None = None
    group: str | None = None
    subset: str | None = None
    twin: str | None = None
    answer: str | None = None
    options: tuple[str, ...] = ()
    correct_option: str | None = None
    safety_warning: str | None = None


def _read_tables(source: SourceConfig, tables: Sequence[str]) -> Iterator[Row]:
    for table in tables:
        base = source.image_folder or folder_of(table)
        for row_id, row in rows(table):
            # One table keeps its rows' plain numbers as ids; several add which they are from.
            number = row_id if len(tables) > 1 else row_id.rsplit(":", 1)[1]
            yield row if isinstance(row, BadRow) else _prompt(source, row, row_id, number, base)


def _read_hub(source: SourceConfig, tables: Sequence[str]) -> Iterator[Row]:
    """A data set by its name on the hub, or the folder of its snapshot, streamed; pictures stay encoded."""
    import datasets

    try:
        dataset = datasets.load_dataset(
            source.path, name=source.hub_config or None, split=source.hub_split, streaming=True
        ).decode(False)
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ConfigError(
            f"The Hugging Face data set {source.path!r} (hub_config {source.hub_config!r}, hub_split {source.hub_split!r}) "
            f"cannot be opened: {error} Check the three names; without a network, name the folder of a snapshot."
        ) from None
    base = source.image_folder or source.path
    for number, row in enumerate(dataset, start=1):
        yield _prompt(source, row, f"{source.path}:{number}", str(number), base)


def _prompt(source: SourceConfig, row: Any, row_id: str, number: str, base: str) -> Row:
    if not isinstance(row, Mapping):
        return BadRow(row_id, "bad_row", "the row is no object with named columns")
    columns = source.columns
    absent = sorted(
        columns.model_dump()[name] for name in columns.model_fields_set if getattr(columns, name) not in row
    )
    if absent:
        there = ", ".join(str(name) for name in row)
        return BadRow(row_id, "no_column", f"the columns {', '.join(absent)} of the config are not among {there}")
    cells = {name: row.get(column) for name, column in columns.model_dump().items()}
    # An empty CSV cell says "not known".
    known = {name: cell for name, cell in cells.items() if cell is not None and cell != ""}
    try:
        labels = _Labels.model_validate(known)
        risk = _risk(known.get("risk"), source.risky_values)
        pictures = known.get("image", [])
        images = [image_in(item, base, row_id) for item in (pictures if isinstance(pictures, list) else [pictures])]
    except ValidationError as error:
        return BadRow(row_id, "bad_row", "; ".join(problem(item) for item in error.errors()))
    except ValueError as error:
        return BadRow(row_id, "bad_row", str(error))
    category = category_of(labels.category)
    return one_turn(
        source,
        labels.id or number,
        labels.text,
        images,
        labels.split,
        risk=risk,
        risk_origin=labels.risk_origin,
        category=category,
        twin_id=labels.twin,
        reference_answer=labels.answer,
        subset=labels.subset,
        group=labels.group or labels.category,
        options=labels.options,
        correct_option=labels.correct_option,
        safety_warning=labels.safety_warning,
    )


def _risk(cell: Any, risky_values: Sequence[str]) -> Risk | None:
    """The label of a risk cell, None where it is empty. Raises ValueError for a word that is no label."""
    if cell is None:
        return None
    word = str(cell).strip().lower()
    if risky_values:
        return Risk.RISKY if word in {value.lower() for value in risky_values} else Risk.BENIGN
    try:
        return Risk(word)
    except ValueError:
        raise ValueError("risk: neither risky nor benign; say in risky_values which words mean risky") from None


TABLE = Format(
    name="table",
    summary="your own table: CSV, TSV, JSON lines, JSON or parquet, columns mapped in the config",
    expects="files that end in .parquet, .jsonl, .json, .csv or .tsv; image names are relative to the file.",
    tables=("*.parquet", "*.jsonl", "*.json", "*.csv", "*.tsv"),
    first_only=True,
    read=_read_tables,
)

HUGGINGFACE = Format(
    name="huggingface",
    summary="a Hugging Face data set by name (owner/name) or the folder of its snapshot, columns mapped in the config",
    expects="the data set as the hub gives it: parquet, JSON, CSV or image folders; never a loading script.",
    tables=(),
    read=_read_hub,
)


def is_hub_name(source: SourceConfig) -> bool:
    """True where a source is read from the hub and not from a folder."""
    return source.format == HUGGINGFACE.name and not files.exists(source.path)
