"""A real GRPO step of TRL (1.16) on the scorer's rewards, images and all."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from dream_ray.chat.protocol import ChatReply, ChatRequest, Task
from dream_ray.feedback.rewards import trl_reward
from tests.feedback.serving import served
from tests.scripted import ScriptedChat

pytestmark = pytest.mark.slow


def test_a_grpo_step_on_the_scorers_rewards(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoProcessor
    from trl import GRPOConfig, GRPOTrainer

    judged: list[ChatRequest] = []

    def judge(request: ChatRequest, earlier: int) -> str | ChatReply:
        """Longer is better, to a point; the second answer that it sees is too much for it."""
        judged.append(request)
        if request.task is Task.VERDICT:
            second = sum(past.task is Task.VERDICT for past in judged) == 2
            return ChatReply(None, "filtered", "policy") if second else "Complies"
        return str(len(request.fields["response"]) % 11)

    returned: list[list[float | None]] = []

    def keep(reward: Callable[..., list[float | None]]) -> Callable[..., list[float | None]]:
        def kept(**arguments: Any) -> list[float | None]:
            returned.append(reward(**arguments))
            return returned[-1]

        return kept

    rows = [
        {"prompt": [{"role": "user", "content": text}], "image": Pillow.new("RGB", (32, 32), "red"), "observations": []}
        for text in ("What grows here?", "Name the colour.")
    ]
    processor = AutoProcessor.from_pretrained(tiny_model)
    processor.tokenizer.padding_side = "left"
    with served(ScriptedChat(judge)) as url:
        trainer = GRPOTrainer(
            model=str(tiny_model),
            reward_funcs=keep(trl_reward(url)),
            train_dataset=Dataset.from_list(rows),
            processing_class=processor,
            args=GRPOConfig(
                output_dir=str(tmp_path),
                per_device_train_batch_size=8,
                num_generations=4,
                max_completion_length=8,
                max_steps=1,
                logging_steps=1,
                use_cpu=True,
                bf16=False,
                report_to=[],
                model_init_kwargs={"dtype": "float32"},
                learning_rate=1e-3,
            ),
        )
        before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
        trainer.train()
    (rewards,) = returned
    assert len(rewards) == 8
    assert rewards.count(None) == 1
    log = next(entry for entry in trainer.state.log_history if "reward" in entry)
    given = [reward for reward in rewards if reward is not None]
    assert log["reward"] == pytest.approx(sum(given) / len(given), abs=1e-4)
    assert log["dream_ray_reward/unjudged"] == pytest.approx(1 / 8)
    assert math.isfinite(log["loss"])
    assert all(len(request.images) == 1 for request in judged)
    moved = [name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])]
    assert moved
