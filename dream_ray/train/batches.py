"""Which examples share a batch: those of like length, so that little of it is padding, and of all kinds, so that no batch
teaches one of them alone.

Contract: `of_like_length` gives a Hugging Face trainer class whose batches hold neighbours in size, each kind of example in
its share of the whole. The order is a pure function of sizes, kinds, batch size, seed and epoch, the same on every worker, so
a resume finds the same next batch. Batches come in random order, and who shares one changes with the epoch. Trainer's own
strategy (`group_by_length`) draws from the process's random state and goes from long to short. `_get_train_sampler` is
private; the tests of this module tell when it changes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch.utils.data import Sampler
    from transformers import Trainer

    TrainerClass = TypeVar("TrainerClass", bound=Trainer)

WINDOW = 50
"""Batches among which examples are sorted: transformers' own figure (trainer_pt_utils.get_length_grouped_indices)."""


def order(sizes: Sequence[tuple[int, ...]], kinds: Sequence[str], batch_size: int, seed: int, epoch: int) -> list[int]:
    """Every row once. Each run of `batch_size` rows, counted from the start, is a batch; the last may be shorter.

    Rows are shuffled, cut into windows of at most `WINDOW` batches and at most a quarter of all rows, sorted by size within
    a window and cut into batches. The full batches are then shuffled; rows that fill none come last. Windows and batches
    hold each kind in about its share of all rows.
    """
    random = np.random.default_rng((seed, epoch))
    window = batch_size * max(1, min(WINDOW, len(sizes) // (4 * batch_size)))
    shuffled = _mixed(random.permutation(len(sizes)).tolist(), kinds)
    full = len(sizes) - len(sizes) % batch_size
    batches = []
    for start in range(0, full, window):
        rows = _mixed(sorted(shuffled[start : min(start + window, full)], key=sizes.__getitem__), kinds)
        batches += [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
    return [row for batch in random.permutation(len(batches)).tolist() for row in batches[batch]] + shuffled[full:]


def _mixed(rows: Sequence[int], kinds: Sequence[str]) -> list[int]:
    """The rows with each kind at even distances; those of a kind stay in their order."""
    count, seen = Counter(kinds[row] for row in rows), Counter[str]()
    place = {}
    for row in rows:
        place[row] = (seen[kinds[row]] + 0.5) / count[kinds[row]]
        seen[kinds[row]] += 1
    return sorted(rows, key=place.__getitem__)


def of_like_length(
    trainer: "type[TrainerClass]", sizes: Sequence[tuple[int, ...]], kinds: Sequence[str], seed: int
) -> "type[TrainerClass]":
    """The trainer class with batches of examples of like size, and of all kinds. `sizes` and `kinds` have one entry per row
    of its training data."""
    from torch.utils.data import Sampler

    class LikeLength(Sampler[int]):
        def __init__(self, batch_size: int) -> None:
            self.batch_size, self.epoch = batch_size, 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[int]:
            return iter(order(sizes, kinds, self.batch_size, seed, self.epoch))

        def __len__(self) -> int:
            return len(sizes)

    class Grouped(trainer):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, train_dataset: Any = None) -> "Sampler[int]":
            return LikeLength(self.args.per_device_train_batch_size)

    Grouped.__name__ = trainer.__name__
    return Grouped
