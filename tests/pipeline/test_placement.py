"""When judge, engines and training share the machines and when they take turns; what each asks of Ray."""

from typing import Any

import pytest

from dream_ray.config import Config
from dream_ray.pipeline import placement
from dream_ray.pipeline.placement import place

VLLM = {"backend": "vllm", "model": "judge", "gpus": 4}


def config(**sections: Any) -> Config:
    tree = {"name": "try", "student": {"model": "student"}, "sources": [{"path": "p.jsonl"}]}
    return Config.model_validate(tree | sections)


def on_gpus(**sections: Any) -> Config:
    """Engines on 4 GPUs, a judge on 4, training on 8."""
    usual = {
        "rollout": {"engines": 4, "gpus_per_engine": 1},
        "judge": {"chat": VLLM},
        "dpo": {"use_gpu": True, "num_workers": 8, "micro_batch_size": 1},
    }
    return config(**(usual | sections))


@pytest.mark.parametrize(
    ("gpus", "sampling", "training", "words"),
    [
        (7, False, False, ["room for 7 GPU", "all answers are sampled, then judged", "goes before training"]),
        (8, True, False, ["4 GPU and the judge for 4 GPU: answers are judged while", "8 GPU", "goes before training"]),
        (12, True, True, ["room for 12 GPU", "the scorer stays"]),
    ],
)
def test_stages_overlap_where_there_is_room_and_else_take_turns(
    gpus: int, sampling: bool, training: bool, words: list[str]
) -> None:
    found = place(on_gpus(), {"CPU": 64.0, "GPU": float(gpus)})
    assert (found.judge_while_sampling, found.judge_while_training) == (sampling, training)
    assert all(word in found.words for word in words), found.words
    assert ("cluster.gpus" in found.words) is not (sampling and training)


def test_a_judge_without_gpus_never_makes_way() -> None:
    for chat in ({"backend": "rules"}, {"backend": "openai", "model": "m"}, VLLM | {"gpus": 0}):
        found = place(on_gpus(judge={"chat": chat}), {"CPU": 1.0})
        assert found.judge_while_sampling
        assert found.judge_while_training


def test_a_pool_counts_by_its_least_and_a_judge_that_grew_by_its_most() -> None:
    pools = on_gpus(
        rollout={"autoscale": [1, 8], "gpus_per_engine": 1}, judge={"chat": VLLM | {"gpus": 1}, "autoscale": [0, 4]}
    )
    assert place(pools, {"GPU": 2.0}).judge_while_sampling
    assert not place(pools, {"GPU": 11.0}).judge_while_training
    assert place(pools, {"GPU": 12.0}).judge_while_training


def test_whatever_else_a_role_asks_for_counts_too() -> None:
    asked = {"rollout": {"big": 1.0}, "judge": {"big": 1.0}, "training": {"big": 0.5}}
    tried = config(cluster={"resources": asked})
    assert placement.engine(tried) == {"CPU": 1, "big": 1}
    assert placement.judge(tried) == {"CPU": 1, "big": 1}
    assert placement.training(tried, tried.dpo) == [{"CPU": 1, "big": 0.5}]
    assert not place(tried, {"big": 1.0}).judge_while_sampling
    found = place(tried, {"big": 1.5})
    assert (found.judge_while_sampling, found.judge_while_training) == (False, True)


def test_bundles_are_what_actors_ask_for() -> None:
    tried = on_gpus(teacher={"chat": VLLM | {"gpus": 2}})
    assert placement.engine(tried) == {"CPU": 1, "GPU": 1}
    assert placement.teacher(tried) == {"CPU": 1, "GPU": 2}
    assert placement.judge(tried) == {"CPU": 1, "GPU": 4}
    assert placement.training(tried, tried.dpo) == [{"CPU": 1, "GPU": 1}] * 8
    assert placement.training(tried, tried.sft) == [{"CPU": 1}]
    assert placement.training(config(), config(dpo={"num_workers": 0}).dpo) == []


@pytest.mark.parametrize("wrong", [[0, 2], [3, 2], [0, 0]])
def test_a_pool_has_at_least_one_actor(wrong: list[int]) -> None:
    for section in ("rollout", "teacher"):
        with pytest.raises(ValueError, match=r"autoscale = .*1 <= least <= most"):
            config(**{section: {"autoscale": wrong}})
