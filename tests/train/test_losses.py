"""Each loss that the config offers is what TRL computes for it, and what its paper says."""

import math
from pathlib import Path
from typing import get_args

import pytest

from dream_ray.config import DpoConfig, ImageConfig, StudentConfig
from dream_ray.train import ray_adapter
from dream_ray.train.dpo import build_trainer
from tests.train.test_training import LORA, load, reference_log_probs, sft_once

pytestmark = pytest.mark.slow

BETA = 0.3


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def expected(loss: str, chosen: tuple[float, int], rejected: tuple[float, int]) -> float:
    """The loss of one pair from log p/p_ref of its answers and their lengths in tokens."""
    (won, won_tokens), (lost, lost_tokens) = chosen, rejected
    margin, per_token = won - lost, won / won_tokens - lost / lost_tokens
    return {
        "sigmoid": -log_sigmoid(BETA * margin),
        "sigmoid_norm": -log_sigmoid(BETA * per_token),
        "ipo": (per_token - 1 / (2 * BETA)) ** 2,
        "hinge": max(0.0, 1 - BETA * margin),
        "robust": (-0.9 * log_sigmoid(BETA * margin) + 0.1 * log_sigmoid(-BETA * margin)) / 0.8,
    }[loss]


def test_the_losses_are_those_of_their_papers(tiny_model: Path, run_files, tmp_path: Path):
    adapter = sft_once(tiny_model, run_files, tmp_path / "sft").adapter
    models = load(tiny_model, adapter), load(tiny_model)
    settings = {
        "prompts": [run_files["prompts"]],
        "pairs": [run_files["pairs"]],
        "skip": (),
        "model": str(tiny_model),
        "start_adapter": adapter,
        "reference_adapter": None,
        "student": StudentConfig(model=str(tiny_model)),
        "lora": LORA,
        "probes": (),
        "images": ImageConfig(),
        "seed": 0,
        "stored": str(tmp_path / "stored"),
        "output": str(tmp_path),
    }
    seen = {}
    for loss in get_args(DpoConfig.model_fields["loss"].annotation):
        for weight in (0.0, 0.5):
            dpo = DpoConfig(
                loss=loss,
                beta=BETA,
                label_smoothing=0.1 if loss == "robust" else 0.0,
                sft_weight=weight,
                num_workers=0,
            )
            trainer = build_trainer(settings | {"dpo": dpo}, ray_adapter._arguments(dpo, tmp_path / "scratch"))
            rows = [trainer.train_dataset[index] for index in (1, 11)]
            batch = trainer.data_collator(rows)
            trainer.model.eval()
            seen[loss, weight] = float(trainer.compute_loss(trainer.model, batch).detach())
    tokens = batch["completion_mask"].sum(dim=1).tolist()
    sides = {}
    for index, row in enumerate(rows):
        for half, side in enumerate(("chosen", "rejected")):
            ours, base = (reference_log_probs(model, tiny_model, row, side) for model in models)
            sides[index, side] = (ours - base, tokens[2 * half + index]), ours
    assert all(abs(ratio) > 1 for (ratio, _), _ in sides.values())
    words = [(sides[index, "chosen"][1], tokens[index]) for index in (0, 1)]
    sft_term = -sum(log_prob for log_prob, _ in words) / sum(count for _, count in words)
    for (loss, weight), value in seen.items():
        pairs = [expected(loss, sides[index, "chosen"][0], sides[index, "rejected"][0]) for index in (0, 1)]
        assert value == pytest.approx(sum(pairs) / 2 + weight * sft_term, rel=1e-4, abs=1e-4), (loss, weight)
