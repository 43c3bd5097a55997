"""What a format is: its reader, and what is known of the published set that it reads.

Contract: each reader's module describes its formats as `Format`s beside the code. `find_tables` finds the files that hold
the rows; a reader gets those and the source's settings. The helpers below build `RawPrompt`s the same way everywhere.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatch
from typing import Any

from dream_ray import files
from dream_ray.config import ConfigError, SourceConfig
from dream_ray.records import Split
from dream_ray.sources.raw import RawImage, RawPrompt, RawTurn, Row
from dream_ray.sources.tables import SUFFIXES


class Terms(StrEnum):
    """What a set may be used for. RESTRICTED: its licence forbids some uses, or it has none; training on it is warned of."""

    FREE = "free"
    RESTRICTED = "restricted"
    EVALUATION_ONLY = "evaluation only"


@dataclass(frozen=True)
class Format:
    """A layout of prompts on disk.

    `tables` are the files with the rows, relative to the source's folder, `*` for any name or folder; with `first_only`
    those of the first pattern that is there, else of all. `counts` gives the rows of each subset as published ("all" where
    a set has no subsets), several where there are several releases.
    """

    name: str
    summary: str
    expects: str
    tables: tuple[str, ...]
    read: Callable[[SourceConfig, Sequence[str]], Iterator[Row]]
    first_only: bool = False
    licence: str = ""
    citation: str = ""
    terms: Terms = Terms.FREE
    trains: bool = False
    """Some of its rows are training prompts unless the config says otherwise."""
    observed: bool = False
    """Its rows may bring their observations."""
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def find_tables(source: SourceConfig, layout: Format) -> list[str]:
    """The uris of the files that hold a source's rows. Raises ConfigError where there are none."""
    if not layout.tables:
        if not files.is_local(source.path):
            raise ConfigError(
                f"The source {source.path!r} is no folder of this machine, and the format {layout.name} reads a data set by "
                "its name or from such a folder. Copy the snapshot to a disk that all nodes see, or, where it holds parquet, "
                "JSON or CSV files, name them with format: table."
            )
        return [source.path]
    if source.path.endswith(SUFFIXES) and files.is_file(source.path):
        return [source.path]
    found: list[str] = []
    for pattern in layout.tables:
        if found and layout.first_only:
            break
        folder, _, leaf = pattern.rpartition("/")
        for name in files.list_folders(source.path) if folder == "*" else [folder]:
            uri = files.join(source.path, name) if name else source.path
            leaves = (path.rsplit("/", 1)[-1] for path in files.list_files(uri))
            found += [files.join(uri, leaf_name) for leaf_name in leaves if fnmatch(leaf_name, leaf)]
    if found:
        return found
    there = "holds none of" if files.exists(source.path) else "is not there, so it holds none of"
    raise ConfigError(
        f"The source {source.path!r} {there} {', '.join(layout.tables)}, which the format {layout.name} is read from. "
        f"The folder must hold: {layout.expects} Name that folder, or the file itself, as the source's path."
    )


def source_name(source: SourceConfig) -> str:
    """What the prompts' `source` column says: the configured name or the stem of the path."""
    return source.name or source.path.rstrip("/").rsplit("/", 1)[-1].rsplit(".", 1)[0]


def folder_of(uri: str) -> str:
    """The folder that a file lies in."""
    return uri.rsplit("/", 1)[0] if "/" in uri else "."


def stem_of(uri: str) -> str:
    """A file's name without its folder and suffix."""
    return uri.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def image_base(source: SourceConfig, table: str, *candidates: str) -> str:
    """The folder that a table's image names are relative to: the configured one, or the first candidate that is there.

    Candidates are relative to the table's folder, which is the last one; they may begin with "../".
    """
    if source.image_folder:
        return source.image_folder
    for candidate in candidates:
        folder = folder_of(table)
        while candidate.startswith("../"):  # an object store does not resolve it
            folder, candidate = ".." if folder == "." else folder_of(folder), candidate.removeprefix("../")
        if files.exists(files.join(folder, candidate)):
            return files.join(folder, candidate)
    return folder_of(table)


def image_at(base: str, name: str, origin: str = "file") -> RawImage:
    """An image by name: as written where it is a uri or an absolute path, else below `base`."""
    return RawImage(name if "://" in name or name.startswith("/") else files.join(base, name), origin)


def image_in(cell: Any, base: str, row_id: str, origin: str = "file") -> RawImage:
    """The image that a table's cell names or holds. Raises ValueError where it does neither."""
    if isinstance(cell, Mapping) and cell.get("bytes"):
        return RawImage(str(cell.get("path") or row_id), origin, bytes(cell["bytes"]))
    if isinstance(cell, bytes):
        return RawImage(row_id, origin, cell)
    name = cell.get("path") if isinstance(cell, Mapping) else cell
    if isinstance(name, str) and name:
        return image_at(base, name, origin)
    raise ValueError("the image is neither a file name nor the bytes of a picture")


def one_turn(
    source: SourceConfig,
    source_id: str,
    text: str,
    images: Sequence[RawImage],
    split: Split = Split.HELD_OUT,
    **labels: Any,
) -> RawPrompt:
    """A prompt of one user turn; `labels` are the other fields of RawPrompt."""
    turn = RawTurn("user", text, tuple(images))
    return RawPrompt(source_name(source), source_id, split, (turn,), **labels)


LETTER_ONLY = "Answer with the letter of the right option only."
"""The last line of a multiple-choice question: an answer in sentences would often not be readable as an option."""


def lettered(question: str, options: Sequence[str]) -> str:
    """A multiple-choice question with its options below it, one a line: "A. …"."""
    lines = [f"{chr(ord('A') + index)}. {option}" for index, option in enumerate(options)]
    return "\n".join([question, *lines, LETTER_ONLY] if lines else [question])
