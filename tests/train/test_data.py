"""The training data sets: joined by prompt, decoded row by row, train split only."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dream_ray.config import ImageConfig, StudentConfig
from dream_ray.images import BadImage
from dream_ray.records import Demonstration, PreferencePair, Prompt, Risk, from_table, to_table
from dream_ray.student import StudentReader
from dream_ray.train import data
from dream_ray.train.broken import TrainingBroken

NO_READER: Any = None
"""For what is refused, or looked at, before a row is read."""


@pytest.fixture(scope="module")
def reader(tiny_model: Path) -> StudentReader:
    return StudentReader(tiny_model, StudentConfig(model=str(tiny_model)), ImageConfig())


@pytest.mark.slow
def test_a_demonstration_becomes_text_and_pixels(run_files, reader):
    rows = data.sft_dataset([run_files["prompts"]], [run_files["demonstrations"]], reader)
    row = rows[2]
    assert set(row) == {"prompt", "completion", "images"}
    assert row["prompt"] == "<|im_start|>user\n<image>Name the colour. (2)<|im_end|>\n<|im_start|>assistant\n"
    assert row["completion"] == "It is a shade of red.<|im_end|>\n"
    assert [image.size for image in row["images"]] == [(56, 60)]


@pytest.mark.slow
def test_a_text_only_prompt_has_no_images(run_files, reader):
    row = data.sft_dataset([run_files["prompts"]], [run_files["demonstrations"]], reader)[11]
    assert row["images"] == []
    assert "<image>" not in row["prompt"]


@pytest.mark.slow
def test_sizes_count_the_images_and_characters_of_prompts(run_files, reader):
    prompts = {row.prompt_id: row for row in from_table(Prompt, pq.read_table(run_files["prompts"]))}
    rows = data.preference_dataset([run_files["prompts"]], [run_files["pairs"]], reader)
    dialogues = [
        prompts[pair.prompt_id].turns for pair in from_table(PreferencePair, pq.read_table(run_files["pairs"]))
    ]
    assert data.sizes(rows) == [
        (sum(len(turn.images) for turn in turns), sum(len(turn.text) for turn in turns)) for turns in dialogues
    ]
    assert len(set(data.sizes(rows))) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "dataset"),
    [
        ("pairs", PreferencePair, data.preference_dataset),
        ("demonstrations", Demonstration, data.sft_dataset),
    ],
)
def test_kinds_are_the_risks_of_the_rows(name: str, kind: type, dataset, run_files, reader):
    learnt = from_table(kind, pq.read_table(run_files[name]))
    rows = dataset([run_files["prompts"]], [run_files[name]], reader)
    assert data.kinds(rows) == [row.risk for row in learnt]
    assert len(set(data.kinds(rows))) > 1


@pytest.mark.slow
def test_pairs_keep_their_order_and_their_sides(run_files, reader):
    rows = data.preference_dataset([run_files["prompts"]], [run_files["pairs"]], reader)
    pairs = from_table(PreferencePair, pq.read_table(run_files["pairs"]))
    for row, pair in zip(rows, pairs, strict=True):
        assert row["chosen"] == f"{pair.chosen}<|im_end|>\n"
        assert row["rejected"] == f"{pair.rejected}<|im_end|>\n"


@pytest.mark.slow
def test_images_are_opened_only_when_their_row_is_read(run_files, tmp_path: Path, reader):
    rows = data.sft_dataset([run_files["prompts"]], [run_files["demonstrations"]], reader)
    (tmp_path / "3.png").unlink()
    (tmp_path / "4.png").write_bytes(b"no image")
    assert rows[2]["images"]
    with pytest.raises(BadImage, match="image_missing"):
        rows[3]
    with pytest.raises(BadImage, match="image_changed"):
        rows[4]


def test_a_prompt_outside_the_train_split_is_refused(run_files, tmp_path: Path):
    held = from_table(Prompt, pq.read_table(run_files["prompts"]))[-1]
    leaked = str(tmp_path / "leaked.parquet")
    pq.write_table(to_table(Demonstration, [Demonstration(held.prompt_id, "Herbs.", Risk.BENIGN, 0, 0)]), leaked)
    with pytest.raises(ValueError, match="1 of 13 rows answer prompts of the split 'dev'"):
        data.sft_dataset([run_files["prompts"]], [run_files["demonstrations"], leaked], NO_READER)


def test_an_unknown_prompt_is_refused(run_files, tmp_path: Path):
    other = str(tmp_path / "other.parquet")
    pq.write_table(to_table(Demonstration, [Demonstration("prompt-0", "Herbs.", Risk.BENIGN, 0, 0)]), other)
    with pytest.raises(ValueError, match="not among the prompts"):
        data.sft_dataset([run_files["prompts"]], [other], NO_READER)


def test_no_rows_are_refused(run_files):
    with pytest.raises(ValueError, match="nothing to train on"):
        data.preference_dataset([run_files["prompts"]], [], NO_READER)


def test_another_stages_file_is_refused(run_files):
    with pytest.raises(ValueError, match="lacks the column"):
        data.sft_dataset([run_files["prompts"]], [run_files["pairs"]], NO_READER)


def rows_to_learn(run_files, tmp_path: Path, kind: type, change) -> str:
    """The run's rows of a kind with some of them changed, as a file of their own."""
    name = "pairs" if kind is PreferencePair else "demonstrations"
    rows = from_table(kind, pq.read_table(run_files[name]))
    uri = str(tmp_path / "changed.parquet")
    pq.write_table(to_table(kind, [change(index, row) for index, row in enumerate(rows)]), uri)
    return uri


def test_pairs_that_teach_nothing_are_left_out_and_counted(run_files, tmp_path: Path):
    def change(index: int, pair: PreferencePair) -> PreferencePair:
        if index == 1:
            return replace(pair, rejected=f" {pair.chosen} ")
        return replace(pair, chosen=" ") if index == 5 else pair

    pairs = rows_to_learn(run_files, tmp_path, PreferencePair, change)
    (tmp_path / "7.png").unlink()
    skip, counts = data.unusable_rows(PreferencePair, [run_files["prompts"]], [pairs], 0.5)
    assert skip == {1, 5, 7}
    assert counts == {"same_answers": 1, "empty_answer": 1, "image_missing": 1}
    kept = data.preference_dataset([run_files["prompts"]], [pairs], NO_READER, skip)
    ids = [pair.pair_id for pair in from_table(PreferencePair, pq.read_table(pairs))]
    assert kept.with_format("arrow")["pair_id"].to_pylist() == [
        name for index, name in enumerate(ids) if index not in skip
    ]


def test_demonstrations_without_a_word_are_left_out(run_files, tmp_path: Path):
    shown = rows_to_learn(
        run_files, tmp_path, Demonstration, lambda index, row: replace(row, answer="\n") if index == 0 else row
    )
    skip, counts = data.unusable_rows(Demonstration, [run_files["prompts"]], [shown], 0.1)
    assert (skip, counts) == ({0}, {"empty_answer": 1})
    assert len(data.sft_dataset([run_files["prompts"]], [shown], NO_READER, skip)) == 11


def test_good_rows_are_all_kept(run_files):
    assert data.unusable_rows(PreferencePair, [run_files["prompts"]], [run_files["pairs"]], 0.0) == (set(), {})


def test_too_many_bad_rows_end_the_training(run_files, tmp_path: Path):
    (tmp_path / "2.png").unlink()
    with pytest.raises(TrainingBroken, match=r"1 of 12 rows cannot be trained on \(image_missing x1; .* allows 5.0%"):
        data.unusable_rows(Demonstration, [run_files["prompts"]], [run_files["demonstrations"]], 0.05)
    for number in range(12):
        (tmp_path / f"{number}.png").unlink(missing_ok=True)
    pairs = rows_to_learn(run_files, tmp_path, PreferencePair, lambda index, row: replace(row, chosen=""))
    with pytest.raises(TrainingBroken, match="12 of 12 rows"):
        data.unusable_rows(PreferencePair, [run_files["prompts"]], [pairs], 1.0)
