"""Batches of like length and of all kinds: every row once, little padding, the same order for the same seed and epoch."""

import itertools
import random

import pytest

from dream_ray.train import batches

BATCH = 4


def two_kinds(number: int) -> list[tuple[int, int]]:
    """Sizes of rows of which every second has a picture, their texts of any length up to 200 characters."""
    draw = random.Random(0)
    return [(row % 2, draw.randint(20, 200)) for row in range(number)]


def cut(rows: list[int]) -> list[list[int]]:
    return [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]


def padded(sizes: list[tuple[int, int]], rows: list[int]) -> int:
    """Length of all batches where a picture counts as much as 300 characters."""
    return sum(len(batch) * max(300 * sizes[row][0] + sizes[row][1] for row in batch) for batch in cut(rows))


@pytest.mark.parametrize("number", [1, 3, 4, 5, 16, 103, 1000])
def test_every_row_comes_once(number: int) -> None:
    for epoch in range(3):
        assert sorted(batches.order(two_kinds(number), ["a"] * number, BATCH, 0, epoch)) == list(range(number))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    sizes, kinds = two_kinds(100), ["a", "b"] * 50
    orders = {
        (seed, epoch): batches.order(sizes, kinds, BATCH, seed, epoch)
        for seed, epoch in itertools.product(range(2), range(3))
    }
    assert len({tuple(rows) for rows in orders.values()}) == len(orders)
    assert all(batches.order(sizes, kinds, BATCH, *key) == rows for key, rows in orders.items())


def test_rows_of_like_length_share_a_batch() -> None:
    sizes = two_kinds(1000)
    grouped = batches.order(sizes, ["a"] * 1000, BATCH, 0, 0)
    mixed = [len({sizes[row][0] for row in batch}) > 1 for batch in cut(grouped)]
    assert sum(mixed) <= 5  # one a window at most
    content = sum(300 * images + characters for images, characters in sizes)
    assert padded(sizes, grouped) < 1.05 * content
    assert padded(sizes, random.Random(0).sample(range(1000), 1000)) > 1.3 * content


def test_batches_come_in_random_order() -> None:
    sizes = two_kinds(1000)
    pictures = [sizes[batch[0]][0] for batch in cut(batches.order(sizes, ["a"] * 1000, BATCH, 0, 0))]
    changes = sum(one != other for one, other in itertools.pairwise(pictures))
    assert changes > 80  # of 249; 125 are expected, 10 where each window came sorted


def test_equal_sizes_are_shuffled_like_any() -> None:
    rows = batches.order([(0, 50)] * 40, ["a"] * 40, BATCH, 0, 0)
    assert rows != sorted(rows)


@pytest.mark.parametrize(("number", "risky"), [(79, 39), (80, 32), (1000, 400)])
def test_every_batch_holds_each_kind_in_its_share(number: int, risky: int) -> None:
    kinds = ["risky"] * risky + ["benign"] * (number - risky)
    expected = BATCH * risky / number
    for seed in range(5):
        full = cut(batches.order(two_kinds(number), kinds, BATCH, seed, 0))[: number // BATCH]
        assert all(abs(sum(kinds[row] == "risky" for row in batch) - expected) <= 1 for batch in full)


def test_every_row_comes_once_whatever_its_kind() -> None:
    kinds = [str(row % 3) for row in range(103)]
    assert sorted(batches.order(two_kinds(103), kinds, BATCH, 0, 0)) == list(range(103))


def test_batches_of_several_kinds_hold_rows_of_like_length() -> None:
    sizes = two_kinds(1000)
    kinds = ["risky" if row < 400 else "benign" for row in range(1000)]
    of_one_kind = batches.order(sizes, ["a"] * 1000, BATCH, 0, 0)
    assert padded(sizes, batches.order(sizes, kinds, BATCH, 0, 0)) < 1.1 * padded(sizes, of_one_kind)


@pytest.mark.slow
def test_the_trainer_takes_its_batches_from_it() -> None:
    """Fails where transformers names the method otherwise, or no longer tells the sampler its epoch."""
    import torch
    import transformers
    from datasets import Dataset

    sizes = two_kinds(50)
    kinds = ["risky"] * 20 + ["benign"] * 30
    trainer = batches.of_like_length(transformers.Trainer, sizes, kinds, seed=7)(
        model=torch.nn.Linear(1, 1),
        args=transformers.TrainingArguments(
            per_device_train_batch_size=BATCH, remove_unused_columns=False, use_cpu=True, report_to="none"
        ),
        train_dataset=Dataset.from_dict({"row": list(range(len(sizes)))}),
        data_collator=lambda rows: {"row": torch.tensor([row["row"] for row in rows])},
    )
    loader = trainer.get_train_dataloader()
    for epoch in range(2):
        loader.set_epoch(epoch)
        assert [row for batch in loader for row in batch["row"].tolist()] == batches.order(
            sizes, kinds, BATCH, 7, epoch
        )
