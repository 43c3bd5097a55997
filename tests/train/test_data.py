"""The training data sets: joined by prompt, decoded row by row, train split only."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dream_ray.config import ImageConfig
from dream_ray.images import BadImage
from dream_ray.records import Demonstration, PreferencePair, Prompt, Risk, from_table, to_table
from dream_ray.train import data

LIMITS = ImageConfig()


def test_a_demonstration_becomes_messages_and_pixels(run_files):
    rows = data.sft_dataset([run_files["prompts"]], [run_files["demonstrations"]], LIMITS)
    row = rows[2]
    assert set(row) == {"prompt", "completion", "images"}
    assert row["prompt"] == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Name the colour. (2)"}]}
    ]
    assert row["completion"] == [{"role": "assistant", "content": [{"type": "text", "text": "It is a shade of red."}]}]
    assert [image.size for image in row["images"]] == [(56, 60)]


def test_a_text_only_prompt_has_no_images(run_files):
    row = data.sft_dataset([run_files["prompts"]], [run_files["demonstrations"]], LIMITS)[11]
    assert row["images"] == []
    assert [part["type"] for part in row["prompt"][0]["content"]] == ["text"]


def test_sizes_count_the_images_and_characters_of_prompts(run_files):
    rows = data.preference_dataset([run_files["prompts"]], [run_files["pairs"]], LIMITS)
    expected = []
    for row in rows:
        texts = [part["text"] for turn in row["prompt"] for part in turn["content"] if part["type"] == "text"]
        expected.append((len(row["images"]), sum(map(len, texts))))
    assert data.sizes(rows) == expected
    assert len(set(expected)) > 1


def test_pairs_keep_their_order_and_their_sides(run_files):
    rows = data.preference_dataset([run_files["prompts"]], [run_files["pairs"]], LIMITS)
    pairs = from_table(PreferencePair, pq.read_table(run_files["pairs"]))
    for row, pair in zip(rows, pairs, strict=True):
        assert row["chosen"][0]["content"][0]["text"] == pair.chosen
        assert row["rejected"][0]["content"][0]["text"] == pair.rejected


def test_images_are_opened_only_when_their_row_is_read(run_files, tmp_path: Path):
    rows = data.sft_dataset([run_files["prompts"]], [run_files["demonstrations"]], LIMITS)
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
        data.sft_dataset([run_files["prompts"]], [run_files["demonstrations"], leaked], LIMITS)


def test_an_unknown_prompt_is_refused(run_files, tmp_path: Path):
    other = str(tmp_path / "other.parquet")
    pq.write_table(to_table(Demonstration, [Demonstration("prompt-0", "Herbs.", Risk.BENIGN, 0, 0)]), other)
    with pytest.raises(ValueError, match="not among the prompts"):
        data.sft_dataset([run_files["prompts"]], [other], LIMITS)


def test_no_rows_are_refused(run_files):
    with pytest.raises(ValueError, match="nothing to train on"):
        data.preference_dataset([run_files["prompts"]], [], LIMITS)


def test_another_stages_file_is_refused(run_files):
    with pytest.raises(ValueError, match="lacks the column"):
        data.sft_dataset([run_files["prompts"]], [run_files["pairs"]], LIMITS)
