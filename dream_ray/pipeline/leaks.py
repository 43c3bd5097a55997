"""Prompts that are trained on and evaluated on: numbers over them would be worth nothing.

Contract: `leaks` compares what ingest wrote by content, whatever source it came from: a training prompt leaks where a
held-out one has the same words and pictures, and where it shows a picture of a set that its licence keeps from training. It
reads a part at a time and keeps 16 bytes a held-out prompt.
"""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray

from dream_ray.pipeline.parts import part_rows, read_part
from dream_ray.pipeline.plans import in_splits
from dream_ray.records import Split


@dataclass
class Leak:
    """How many training prompts leak, and the first of them as "source:source_id"."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one more."""
        self.count += 1
        self.first = [*self.first, name][:3]


def source_index(part: str) -> int:
    """The source that a part's rows are from, by its place in the config; the inverse of `part_name`."""
    return int(part.rsplit("-", 2)[1])


def _keys(row: dict[str, Any], with_pictures: bool) -> Iterator[bytes]:
    """What a prompt is recognised by: its whole dialogue, and each of its pictures."""
    pictures = [image["sha256"] for turn in row["turns"] for image in turn["images"]]
    words = [" ".join(turn["text"].lower().split()) for turn in row["turns"]]
    yield hashlib.sha256(repr((words, pictures)).encode()).digest()[:16]
    if with_pictures:
        yield from (hashlib.sha256(picture.encode()).digest()[:16] for picture in pictures)


def _rows(folder_uri: str, part: str) -> list[dict[str, Any]]:
    table = read_part(folder_uri, part)
    return [] if table is None else table.select(["source", "source_id", "turns"]).to_pylist()


@ray.remote(num_cpus=1)
def leaks(folder_uri: str, never_trained: Collection[int]) -> tuple[Leak, Leak]:
    """Training prompts that repeat a held-out prompt, and those that show a picture of a source in `never_trained` (indices
    of the config's sources)."""
    parts = list(part_rows(folder_uri))
    evaluated: set[bytes] = set()
    guarded: set[bytes] = set()
    for part in parts:
        if in_splits(part, (Split.HELD_OUT,)):
            guard = source_index(part) in never_trained
            for row in _rows(folder_uri, part):
                dialogue, *pictures = _keys(row, guard)
                evaluated.add(dialogue)
                guarded.update(pictures)
    repeated, shown = Leak(), Leak()
    for part in parts:
        if in_splits(part, (Split.TRAIN,)) and (evaluated or guarded):
            for row in _rows(folder_uri, part):
                dialogue, *pictures = _keys(row, bool(guarded))
                name = f"{row['source']}:{row['source_id']}"
                if dialogue in evaluated:
                    repeated.add(name)
                if not guarded.isdisjoint(pictures):
                    shown.add(name)
    return repeated, shown


@ray.remote(num_cpus=1)
def trained_on(training_uri: str, benchmark_uri: str) -> list[str]:
    """Held-out prompts of one folder, as "source:source_id", that are training prompts of another: same words and pictures."""
    held_out = {
        next(_keys(row, False)): f"{row['source']}:{row['source_id']}"
        for part in part_rows(benchmark_uri)
        if in_splits(part, (Split.HELD_OUT,))
        for row in _rows(benchmark_uri, part)
    }
    training = (
        next(_keys(row, False))
        for part in part_rows(training_uri)
        if in_splits(part, (Split.TRAIN,))
        for row in _rows(training_uri, part)
    )
    return sorted({held_out[key] for key in training if key in held_out})
