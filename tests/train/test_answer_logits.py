"""What is scored on a CPU, and that the numbers stay those of TRL's own head, whose private names are touched for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def forward(tiny_model: Path) -> Callable[[], Any]:
    """Two prompts of six tokens with answers of four; the result with TRL's head, and the gradient of the embeddings."""
    import torch
    from transformers import AutoModelForImageTextToText
    from trl.trainer import utils

    model = AutoModelForImageTextToText.from_pretrained(tiny_model, dtype=torch.float32)
    utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"))
    ids = torch.arange(20).reshape(2, 10)
    labels = ids.masked_fill(torch.arange(10) < 6, -100)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "fused_lm_head": True}

    def run() -> tuple[Any, Any]:
        model.zero_grad()
        found = model(**inputs)
        found.loss.backward()
        return found, model.get_input_embeddings().weight.grad.clone()

    return run


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions TRL's own kernel scored, call by call."""
    from trl.trainer import utils

    scored: list[int] = []
    kernel = utils._ChunkedLogProbFunction

    class Spy:
        @staticmethod
        def apply(hidden: Any, *rest: Any) -> Any:
            scored.append(len(hidden))
            return kernel.apply(hidden, *rest)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Spy)
    return scored


def check(found: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    import torch

    for name in ("loss", "log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"):
        torch.testing.assert_close(found[0][name], expected[0][name], msg=name)
    torch.testing.assert_close(found[1], expected[1])


def test_answer_tokens_are_scored_once_and_the_numbers_stay(forward: Callable[[], Any], tiled: list[int]) -> None:
    from dream_ray.train.answer_logits import score_answers_only

    everywhere = forward()
    with score_answers_only():
        answers = forward()
    assert tiled == [18]
    check(answers, everywhere)
    forward()
    assert tiled == [18, 18]


def test_more_logits_than_memory_should_hold_are_tiled(
    forward: Callable[[], Any], tiled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dream_ray.train import answer_logits

    everywhere = forward()
    monkeypatch.setattr(answer_logits, "MOST_LOGITS", 8)
    with answer_logits.score_answers_only():
        answers = forward()
    assert tiled == [18, 8]
    check(answers, everywhere)
