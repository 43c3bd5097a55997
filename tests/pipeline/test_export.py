"""What leaves a run: a data set that TRL and LLaMA-Factory read, and a policy as one folder."""

import io
import json
from pathlib import Path

import pytest
import ray
from datasets import load_dataset
from PIL import Image as Pixels
from typer.testing import CliRunner

from dream_ray.cli import app
from dream_ray.config import ConfigError
from dream_ray.dialogue import to_messages
from dream_ray.pipeline import export_rows
from dream_ray.pipeline.export import export_data, export_policy
from dream_ray.pipeline.reporting import write_policy
from dream_ray.records import Demonstration, Image, Risk, Split, Turn, make_prompt
from dream_ray.train.policy import Policy
from tests.doctor.published import publish
from tests.pipeline.run_dirs import MARKS, PER_SPLIT, RunDir

ROWS = 2 * PER_SPLIT
"""Training prompts of the run: risky and benign ones."""


@pytest.fixture
def finished(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run").whole()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_the_card_leads_datasets_to_rows_with_decoded_images(
    finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("an export started Ray"))
    written = export_data(finished.store.uri, str(tmp_path / "data"))
    assert written.rows == {"demonstrations": ROWS, "preferences": 2 * ROWS}
    assert not written.skipped
    sft = load_dataset(str(tmp_path / "data"), "demonstrations", split="train")
    dpo = load_dataset(str(tmp_path / "data"), "preferences", split="train")
    assert (len(sft), len(dpo)) == (ROWS, 2 * ROWS)
    prompts = {prompt.prompt_id: prompt for prompt in finished.prompts}
    for row in (*sft, *dpo):
        prompt = prompts[row["prompt_id"]]
        assert prompt.split == Split.TRAIN
        assert _parts(row["prompt"]) == to_messages(prompt.turns)
        assert [image.size for image in row["images"]] == [(40, 30)]
    assert _parts(sft[0]["completion"]) == to_messages([Turn("assistant", "ANSWER-MARK shown", ())])
    assert _parts(dpo[0]["rejected"]) == to_messages([Turn("assistant", "ANSWER-MARK 1 word", ())])
    assert sorted(set(dpo["round"])) == [1, 2]
    red = {image.getpixel((0, 0))[0] for row in sft for image in row["images"]}
    assert red == {20 * index for index in range(PER_SPLIT)}


def _parts(messages: list[dict]) -> list[dict]:
    """Messages without the empty text of image parts, which parquet's columns have."""
    return [
        {
            "role": message["role"],
            "content": [{k: v for k, v in part.items() if v is not None} for part in message["content"]],
        }
        for message in messages
    ]


def test_llama_factory_finds_what_its_description_names(finished: RunDir, tmp_path: Path) -> None:
    export_data(finished.store.uri, str(tmp_path / "data"))
    described = json.loads((tmp_path / "data" / "dataset_info.json").read_text())
    assert sorted(described) == ["small_demonstrations", "small_preferences"]
    for entry in described.values():
        paths = sorted(str(path) for path in (tmp_path / "data" / entry["file_name"]).iterdir())
        rows = load_dataset("parquet", data_files=paths, split="train")
        columns, tags = entry["columns"], entry["tags"]
        for row in rows:
            messages = row[columns["messages"]]
            assert [m[tags["role_tag"]] for m in messages] == ["user", "assistant"][: len(messages)]
            # Its rules: an even number of messages to fine-tune on, an odd one before a choice; a mark for each image.
            assert len(messages) % 2 == (1 if entry.get("ranking") else 0)
            marks = sum(m[tags["content_tag"]].count("<image>") for m in messages)
            assert marks == len(row[columns["images"]]) == 1
            if entry.get("ranking"):
                assert row[columns["chosen"]][tags["role_tag"]] == "assistant"
                assert row[columns["chosen"]] != row[columns["rejected"]]


def test_a_text_that_names_the_image_mark_adds_no_image() -> None:
    shown = Image("a" * 64, "/nowhere", 1, 1, "file")
    turns = [Turn("user", "What does <image> mean?", (shown, shown)), Turn("assistant", "A mark.", ())]
    prompt = make_prompt(source="s", source_id="1", turns=[*turns, Turn("user", "And here?", (shown,))])
    answer = Demonstration(prompt.prompt_id, "An <image> again.", Risk.BENIGN, 0, 0)
    row = export_rows.demonstration(prompt, answer, [b"1", b"2", b"3"])
    assert [message["content"] for message in row["dialogue"]] == [
        "<image><image>What does < image > mean?", "A mark.", "<image>And here?", "An < image > again.",
    ]  # fmt: skip
    assert row["prompt"] == to_messages(prompt.turns)


def test_images_that_are_gone_or_changed_are_skipped_and_counted(finished: RunDir, tmp_path: Path) -> None:
    first, second = sorted({image.uri for prompt in finished.prompts for image in prompt.images})[:2]
    Path(first).unlink()
    buffer = io.BytesIO()
    Pixels.new("RGB", (40, 30)).save(buffer, "PNG")
    Path(second).write_bytes(buffer.getvalue())
    done = CliRunner().invoke(app, ["export", "--data", finished.store.uri, str(tmp_path / "data")])
    assert done.exit_code == 0, done.output
    # Each picture is shown by a risky and a benign prompt, in the demonstrations and in two rounds.
    assert "left out, image_missing: 6 rows" in done.output
    assert "left out, image_changed: 6 rows" in done.output
    assert f"demonstrations: {ROWS - 4} rows" in done.output
    assert "6 rows were left out: image_missing." in (tmp_path / "data" / "README.md").read_text()


def test_the_card_shows_counts_and_no_text_or_place(finished: RunDir, tmp_path: Path) -> None:
    export_data(finished.store.uri, str(tmp_path / "data"))
    card = (tmp_path / "data" / "README.md").read_text()
    assert f"| demonstrations | {ROWS} |" in card
    assert "| invented | 60 | ? | not known |" in card
    assert not [mark for mark in (*MARKS, str(tmp_path)) if mark in card]


def test_answers_to_other_splits_leave_nothing_behind(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.stage("ingest", type(run.prompts[0]), run.prompts)
    held = next(prompt for prompt in run.prompts if prompt.split == Split.HELD_OUT)
    run.stage("demonstrate", Demonstration, [Demonstration(held.prompt_id, "An answer.", Risk.RISKY, 0, 0)], ["ingest"])
    with pytest.raises(ConfigError, match="held_out"):
        export_data(run.store.uri, str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_nothing_to_export_and_outputs_that_hold_something(finished: RunDir, tmp_path: Path) -> None:
    empty = RunDir(tmp_path / "empty")
    with pytest.raises(ConfigError, match="neither demonstrations nor preference pairs"):
        export_data(empty.store.uri, str(tmp_path / "data"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("of value")
    for arguments in (["--data", finished.store.uri], [finished.store.uri]):
        done = CliRunner().invoke(app, ["export", *arguments, str(tmp_path / "mine")])
        assert done.exit_code == 2
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "of value"


def test_a_policy_without_an_adapter_is_copied_with_the_runs_card(finished: RunDir, tmp_path: Path) -> None:
    model = publish(tmp_path, "Qwen2.5-VL-3B-Instruct")
    write_policy(finished.store, Policy("policy-1", str(model), None))
    assert export_policy(finished.store.uri, str(tmp_path / "out")) == "policy-1"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in model.iterdir()} | {"README.md"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "`policy-1`" in card


def test_an_adapter_whose_base_is_gone(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone"}')
    with pytest.raises(ConfigError, match="--base"):
        export_policy(str(tmp_path), str(tmp_path / "out"))


def test_a_run_that_has_not_ended_has_no_policy(finished: RunDir, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.json"):
        export_policy(finished.store.uri, str(tmp_path / "out"))
