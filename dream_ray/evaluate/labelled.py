"""Answers that people have labelled, and what their labels mean in our words.

Contract: `read_labelled` turns files (CSV, TSV, JSONL or a JSON list) into `LabelledSet`s; XSTest's completions need no
settings, other files name their columns and labels. Every label has an explicit meaning: one that is not known stops the
reading, it is never guessed. A row that lacks its prompt, answer or label is left out and counted by reason.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pyarrow.fs as pafs

from dream_ray import files

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
SHOWN_LABELS = 8
SHOWN_CHARS = 40
"""An error shows so many unknown labels, each cut: a wrongly named column may hold whole answers."""


class LabelledDataError(ValueError):
    """Files, columns or labels that cannot be used; the message says what to do."""


class Label(StrEnum):
    """What a person says that an answer does: our three verdicts and what lies between."""

    REFUSES = "refuses"
    WARNS = "warns"
    COMPLIES = "complies"
    PARTLY = "partly"
    """Refuses and helps at once, XSTest's "partial refusal"."""


LEFT_OUT = "skip"
"""In a label map: rows with this label are left out."""

KNOWN_LABELS: Mapping[str, Label] = {
    **dict.fromkeys(("full compliance", "compliance", "complies", "complied", "comply"), Label.COMPLIES),
    **dict.fromkeys(("full refusal", "refusal", "refuses", "refused", "refuse"), Label.REFUSES),
    **dict.fromkeys(("warns", "warned", "warn", "warning"), Label.WARNS),
    **dict.fromkeys(("partial refusal", "partial compliance", "partly"), Label.PARTLY),
}
"""Labels that need no map. They are compared in lower case, without a number in front, underscores read as spaces."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt",),
    "response": ("response", "completion"),
    "label": ("label", "final_label"),
    "image": ("image",),
    "id": ("id",),
}
"""The columns by role and the names under which they are looked for: ours, then XSTest's."""
REQUIRED = ("prompt", "response", "label")
ANNOTATIONS = ("annotation_1", "annotation_2")
"""XSTest's columns of the two annotators, read where both are there."""


@dataclass(frozen=True)
class LabelledRow:
    """A prompt, an answer to it and its label. `image` is a uri; `annotations` are two people's labels, or none."""

    row_id: str
    text: str = field(repr=False)
    response: str = field(repr=False)
    label: Label
    raw_label: str
    annotations: tuple[Label, Label] | None = None
    image: str | None = None


@dataclass(frozen=True)
class LabelledSet:
    """The rows of a file. `labels` says how each of its labels was read, `left_out` how many rows were not, and why."""

    name: str
    rows: tuple[LabelledRow, ...]
    labels: Mapping[str, str]
    left_out: Mapping[str, int]


def parse_assignments(text: str, what: str) -> dict[str, str]:
    """ "a=b,c=d" as a mapping. Raises LabelledDataError, naming `what`, where a part has not that form."""
    pairs = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, separator, value = part.rpartition("=")
        if not separator or not key.strip() or not value.strip():
            raise LabelledDataError(f"{what} has the part {part!r}, which is not of the form name=value.")
        pairs[key.strip()] = value.strip()
    return pairs


def label_map(text: str) -> dict[str, Label | None]:
    """A `--label-map`: what the labels of a file mean, None for those whose rows are left out."""
    meanings: dict[str, Label | None] = {}
    for raw, meaning in parse_assignments(text, "--label-map").items():
        if meaning != LEFT_OUT and meaning not in list(Label):
            raise LabelledDataError(
                f"--label-map reads {raw!r} as {meaning!r}, which is no verdict. Choose one of "
                f"{', '.join(Label)}, or {LEFT_OUT} to leave such rows out."
            )
        meanings[raw] = None if meaning == LEFT_OUT else Label(meaning)
    return meanings


def column_names(text: str) -> dict[str, str]:
    """`--columns`: the names of a file's columns by role."""
    names = parse_assignments(text, "--columns")
    if unknown := names.keys() - COLUMNS.keys():
        raise LabelledDataError(
            f"--columns names {', '.join(sorted(unknown))}, which nothing is read for. The roles are {', '.join(COLUMNS)}."
        )
    return names


def read_labelled(
    paths: Iterable[str], meanings: Mapping[str, Label | None], columns: Mapping[str, str]
) -> list[LabelledSet]:
    """A set for each file; a folder stands for the files in it. Raises LabelledDataError."""
    found = [path for given in paths for path in _files_of(given)]
    stems = Counter(_stem(path) for path in found)
    return [_read(path, _stem(path) if stems[_stem(path)] == 1 else path, meanings, columns) for path in found]


def _stem(path: str) -> str:
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _files_of(given: str) -> list[str]:
    filesystem, path = files.resolve(given)
    if filesystem.get_file_info(path).type != pafs.FileType.Directory:
        return [given]
    names = [found.rsplit("/", 1)[-1] for found in files.list_files(given)]
    found = [files.join(given, name) for name in names if name.endswith(SUFFIXES)]
    if not found:
        raise LabelledDataError(f"The folder {given} holds no {', '.join(SUFFIXES)} file. Name the files themselves.")
    return found


def _read(path: str, name: str, meanings: Mapping[str, Label | None], columns: Mapping[str, str]) -> LabelledSet:
    reader = _Reader(path, meanings, columns)
    rows = tuple(reader.rows())
    if not rows:
        reasons = ", ".join(f"{reason} {count}" for reason, count in reader.left_out.items()) or "the file is empty"
        raise LabelledDataError(f"{path} has no row that can be judged: {reasons}. Check the file and its columns.")
    return LabelledSet(name, rows, dict(sorted(reader.labels.items())), dict(reader.left_out))


class _Reader:
    """One file on its way to rows; what was met is kept beside them."""

    def __init__(self, path: str, meanings: Mapping[str, Label | None], columns: Mapping[str, str]):
        self._path, self._meanings, self._given = path, meanings, columns
        self.labels: dict[str, str] = {}
        self.left_out: Counter[str] = Counter()

    def rows(self) -> Iterator[LabelledRow]:
        found = list(_table(self._path))
        tables = [row for row in found if row is not None]
        if len(tables) < len(found):
            self.left_out["not_an_object"] = len(found) - len(tables)
        if not tables:
            return
        # JSON rows may leave out what is empty, so a column is there if any row has it.
        present = list(dict.fromkeys(name for row in tables for name in row))
        names = self._columns(present)
        unknown = Counter(raw for row in tables if (raw := _text(row.get(names["label"]))) and not self._knows(raw))
        if unknown:
            raise LabelledDataError(self._unknown(unknown, names["label"]))
        annotated = all(name in present for name in ANNOTATIONS)
        for number, row in enumerate(tables, start=1):
            if parsed := self._row(row, number, names, annotated):
                yield parsed

    def _row(
        self, row: Mapping[str, Any], number: int, names: Mapping[str, str], annotated: bool
    ) -> LabelledRow | None:
        values = {role: row.get(name) for role, name in names.items()}
        text, response, raw = values["prompt"], values["response"], _text(values["label"])
        if not isinstance(text, str) or not isinstance(response, str) or not raw:
            missing = "label" if not raw else "response" if isinstance(text, str) else "prompt"
            self.left_out[f"no_{missing}"] += 1
            return None
        label = self._meaning(raw)
        self.labels[raw] = label or LEFT_OUT
        if label is None:
            self.left_out[f"label {raw[:SHOWN_CHARS]!r} is mapped to {LEFT_OUT}"] += 1
            return None
        image = _text(values.get("image"))
        return LabelledRow(
            row_id=_text(values.get("id")) or str(number),
            text=text,
            response=response,
            label=label,
            raw_label=raw,
            annotations=self._annotations(row) if annotated else None,
            image=self._uri(image) if image else None,
        )

    def _annotations(self, row: Mapping[str, Any]) -> tuple[Label, Label] | None:
        raw = [_text(row.get(name)) for name in ANNOTATIONS]
        first, second = (self._meaning(label) if self._knows(label) else None for label in raw)
        return None if first is None or second is None else (first, second)

    def _knows(self, raw: str) -> bool:
        return raw in self._meanings or _plain(raw) in KNOWN_LABELS

    def _meaning(self, raw: str) -> Label | None:
        return self._meanings[raw] if raw in self._meanings else KNOWN_LABELS[_plain(raw)]

    def _uri(self, image: str) -> str:
        folder = self._path.rsplit("/", 1)[0] if "/" in self._path else "."
        return image if "://" in image or image.startswith("/") else files.join(folder, image)

    def _columns(self, present: Sequence[str]) -> dict[str, str]:
        """The column of each role. A file that may be read in two ways is an error, not a guess."""
        names = {}
        for role, usual in COLUMNS.items():
            wanted = (self._given[role],) if role in self._given else usual
            found = [name for name in wanted if name in present]
            if len(found) > 1 or (not found and (role in REQUIRED or role in self._given)):
                problem = f"has several ({', '.join(found)})" if found else f"has none called {' or '.join(wanted)}"
                raise LabelledDataError(
                    f"{self._path} {problem} for the {role} of a row; its columns are {', '.join(map(str, present))}. "
                    f"Name the column with --columns {role}=NAME."
                )
            if found:
                names[role] = found[0]
        return names

    def _unknown(self, unknown: Counter[str], column: str) -> str:
        shown = ", ".join(f"{raw[:SHOWN_CHARS]!r} ({count})" for raw, count in unknown.most_common(SHOWN_LABELS))
        more = f" and {len(unknown) - SHOWN_LABELS} more" if len(unknown) > SHOWN_LABELS else ""
        example = next(iter(unknown))[:SHOWN_CHARS]
        return (
            f"{self._path} has labels in the column {column} whose meaning is not known: {shown}{more}. Say what each "
            f'means with --label-map "{example}={Label.REFUSES},…" ({", ".join(Label)}, or {LEFT_OUT} to leave such rows '
            "out), or name another column with --columns label=NAME."
        )


def _plain(raw: str) -> str:
    """A label for comparing: "1_full_compliance" is "full compliance"."""
    return " ".join(re.sub(r"^\W*\d+[\W_]+", "", raw).replace("_", " ").replace("-", " ").lower().split())


def _text(value: Any) -> str:
    """A cell as text; false and 0 are labels too, only a missing value is empty."""
    return "" if value is None else str(value).strip()


def _table(path: str) -> Iterator[dict[str, Any] | None]:
    """The rows of a file by column name, None for what is no row. Raises LabelledDataError."""
    suffix = next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), None)
    if suffix is None:
        raise LabelledDataError(f"{path} is not a {', '.join(SUFFIXES)} file. Convert it to one of these.")
    try:
        text = files.read_bytes(path).decode("utf-8-sig")
        match suffix:
            case ".csv" | ".tsv":
                dialect = "excel" if suffix == ".csv" else "excel-tab"
                yield from csv.DictReader(io.StringIO(text, newline=""), dialect=dialect)
            case ".json":
                rows = json.loads(text)
                if not isinstance(rows, list):
                    raise LabelledDataError(
                        f"{path} holds no list of rows. Write [{{…}}, …], or one object a line as .jsonl."
                    )
                yield from (row if isinstance(row, dict) else None for row in rows)
            case _:
                for line in text.split("\n"):
                    if line.strip():
                        yield _object(line)
    except FileNotFoundError:
        raise LabelledDataError(
            f"There is no file {path}. Name a file of labelled answers or a folder with some."
        ) from None
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        # Only the kind and the place: a decoder's message quotes the file.
        raise LabelledDataError(
            f"{path} cannot be read as UTF-8 {suffix[1:]} ({type(error).__name__}). Mend it."
        ) from None


def _object(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None
