"""Trainings that end before their time, and what they leave behind."""

import json
import math
from pathlib import Path

import pytest

from dream_ray.config import (
    ClusterConfig,
    CollapseConfig,
    ConfigError,
    DpoConfig,
    ImageConfig,
    SftConfig,
    StudentConfig,
)
from dream_ray.records import Risk, Split, Turn, make_prompt
from dream_ray.train import ray_adapter
from dream_ray.train.broken import TrainingBroken
from dream_ray.train.policy import Policy
from dream_ray.train.sft import build_trainer as build_sft
from tests.train.conftest import draw
from tests.train.test_training import LORA, adapter_weights, dpo_once, load, sft_once

pytestmark = pytest.mark.slow

DPO = DpoConfig(learning_rate=1e-2, epochs=3, batch_size=4, micro_batch_size=2, num_workers=0)
SFT = SftConfig(learning_rate=1e-2, epochs=1, batch_size=4, micro_batch_size=2, num_workers=0)


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("probes")
    texts = ("Name a tree.", "What is shown in this picture, and where may it have been taken?", "Why?")
    return [
        make_prompt(
            source="probes",
            source_id=str(number),
            turns=[Turn("user", text, (draw(folder / f"{number}.png", number),) if number else ())],
            split=Split.DEV,
            risk=Risk.BENIGN,
        )
        for number, text in enumerate(texts)
    ]


def greedy_words(model, tiny_model: Path, prompt) -> int:
    """Words of the answer to one prompt, asked alone, with transformers only."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor

    from dream_ray.dialogue import to_messages

    processor = AutoProcessor.from_pretrained(tiny_model)
    text = processor.apply_chat_template(to_messages(prompt.turns), add_generation_prompt=True)
    shown = [Image.open(image.uri).convert("RGB") for image in prompt.images]
    inputs = processor(text=[text], images=[shown] if shown else None, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=48, do_sample=False)
    return len(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).split())


def test_a_collapse_ends_the_round_with_the_last_good_weights(tiny_model: Path, run_files, tmp_path: Path, probes):
    import torch

    sft = sft_once(tiny_model, run_files, tmp_path / "sft", SFT)
    start = Policy("policy-0", str(tiny_model), sft.adapter)
    whole = dpo_once(tiny_model, run_files, tmp_path / "whole", start, start, DPO)
    assert (whole.steps, whole.stopped) == (9, "")
    stored = str(tmp_path / "whole" / "reference")
    logged = {entry["step"]: entry for entry in whole.history if "loss" in entry}
    assert all(math.isfinite(entry["kl"]) for entry in logged.values())
    assert logged[1]["kl"] == pytest.approx(0, abs=1e-3)  # before the first update the policy is the reference
    margins = [logged[step]["rewards/margins"] for step in range(1, 10)]
    # Steps (from 0) whose margin is above all before: a bound just below it ends a training there, one step too late for
    # its own weights, which are then those of the step before.
    rises = [step for step in range(1, 9) if margins[step] > max(margins[:step])]
    results = []
    for name, step in (("ended", rises[1]), ("later", rises[-1])):
        bound = (max(margins[:step]) + margins[step]) / 2
        bounded = DPO.model_copy(update={"stop": CollapseConfig(max_margin=bound)})
        results.append(dpo_once(tiny_model, run_files, tmp_path / name, start, start, bounded, stored=stored))
        assert "is above dpo.stop.max_margin = " in results[-1].stopped
        assert results[-1].steps == step
        assert [entry["step"] for entry in results[-1].history if "loss" in entry] == list(range(1, step + 2))
    ended, later = results
    assert ended.steps < later.steps
    weights = [adapter_weights(it.adapter) for it in (sft, ended, later, whole)]
    for one in range(4):
        for other in range(one):
            assert any(not torch.equal(weights[one][name], weights[other][name]) for name in weights[0])

    asking = DPO.model_copy(update={"stop": CollapseConfig(max_length_ratio=100, probe_tokens=48), "epochs": 1})
    asked = dpo_once(tiny_model, run_files, tmp_path / "asked", start, start, asking, stored=stored, probes=probes)
    before = asked.history[0]
    assert before["step"] == 0
    words = [greedy_words(load(tiny_model, sft.adapter), tiny_model, prompt) for prompt in probes]
    assert before["probe/words"] == pytest.approx(sum(words) / len(words))
    assert all(0 <= entry["probe/refused"] <= 1 for entry in asked.history[:-1])
    with pytest.raises(ConfigError, match="none in the development split"):
        dpo_once(tiny_model, run_files, tmp_path / "nobody", start, start, asking)


def test_the_log_is_a_file_while_it_runs_and_goes_to_tensorboard_where_asked(
    tiny_model: Path, run_files, tmp_path: Path
):
    result = sft_once(tiny_model, run_files, tmp_path / "sft", SFT.model_copy(update={"report_to": ("tensorboard",)}))
    lines = [json.loads(line) for line in (tmp_path / "sft" / "training.jsonl").read_text().splitlines()]
    assert lines[:-1] == result.history
    assert "train_runtime" in lines[-1]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 3
    assert all(line["tokens_per_second"] > 0 and line["grad_norm"] > 0 for line in steps)
    assert all(0 <= line["padding_share"] < 0.9 for line in steps)
    assert any(line["padding_share"] > 0 for line in steps)
    events = list((tmp_path / "sft" / "tensorboard").iterdir())
    assert events
    content = events[0].read_bytes()
    assert b"train/loss" in content
    assert b"train/tokens_per_second" in content


def fit_sft(model: Path, run_files, output: Path, config: SftConfig, spoil):
    """Train with a trainer that `spoil` did something to."""
    output.mkdir()

    def build(settings, arguments):
        trainer = build_sft(settings, arguments)
        spoil(trainer)
        return trainer

    settings = {
        "prompts": [run_files["prompts"]],
        "demonstrations": [run_files["demonstrations"]],
        "skip": (),
        "model": str(model),
        "student": StudentConfig(model=str(model)),
        "lora": LORA,
        "images": ImageConfig(),
        "seed": 0,
    }
    return ray_adapter.fit(build, settings, config, str(output), ClusterConfig())


def test_a_loss_that_is_no_number_ends_the_training(tiny_model: Path, run_files, tmp_path: Path):
    broken = SFT.model_copy(update={"learning_rate": 1e30, "max_grad_norm": 1e30, "epochs": 3})
    with pytest.raises(TrainingBroken, match=r"given up: (loss|grad_norm) is (nan|inf) at step \d.*\n.*is kept"):
        sft_once(tiny_model, run_files, tmp_path / "sft", broken)
    assert not (tmp_path / "sft" / "adapter").exists()
    assert (tmp_path / "sft" / "training.jsonl").exists()


def test_a_lack_of_memory_is_explained(tiny_model: Path, run_files, tmp_path: Path):
    import torch

    def no_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.raises(
        TrainingBroken, match=r"out of memory: .*2.00 GiB\. Remedies, .*lower micro_batch_size \(now 2\)"
    ):
        fit_sft(
            tiny_model, run_files, tmp_path / "sft", SFT, lambda trainer: setattr(trainer, "training_step", no_memory)
        )


def test_an_image_that_goes_while_it_trains_ends_the_training(tiny_model: Path, run_files, tmp_path: Path):
    with pytest.raises(TrainingBroken, match=r"image_missing: .*3\.png"):
        fit_sft(tiny_model, run_files, tmp_path / "sft", SFT, lambda trainer: (tmp_path / "3.png").unlink())
