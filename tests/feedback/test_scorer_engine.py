"""A scorer whose judge is a vLLM engine in the replica: the engine dies, and Serve takes another replica for this one."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray.util.state import list_actors

from dream_ray.config import ImageConfig, JudgeConfig, VllmConfig
from dream_ray.feedback.client import ScorerClient
from dream_ray.feedback.scorer import start_scorer, stop_scorer
from dream_ray.feedback.wire import ScoreItem
from tests.records_for_tests import SERVICES

pytestmark = pytest.mark.slow

ITEM = {
    "rollout_id": "r",
    "prompt_id": "p",
    "text": "What is the capital of France?",
    "response": "The capital of France is Paris.",
    "observations": [],
}


@pytest.fixture
def scorer(student: Path) -> Iterator[str]:
    chat = VllmConfig(backend="vllm", model=str(student), gpus=0, max_model_len=2048, max_tokens=50, dtype="float32")
    ray.init(address="local", num_cpus=8, include_dashboard=True)  # the state API asks the dashboard
    try:
        yield start_scorer(JudgeConfig(chat=chat), ImageConfig(), SERVICES).url
    finally:
        stop_scorer()
        ray.shutdown()


def replicas() -> dict[str, int]:
    """The scorer's replicas that are alive: process ids by the actors' names."""
    address = ray.get_runtime_context().gcs_address
    actors = list_actors(address=address, filters=[("state", "=", "ALIVE")], detail=True)
    return {actor.name: actor.pid for actor in actors if "Scorer" in actor.class_name and "Replica" in actor.class_name}


def score(url: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/score", json=ITEM, timeout=120, trust_env=False)


def test_a_replica_whose_engine_died_is_replaced(scorer: str) -> None:
    def kill_the_engine(replica: Any) -> None:
        """In the replica's process: the engine breaks at its next step."""
        from vllm import LLMEngine

        def step(engine: Any) -> None:
            raise RuntimeError("the engine was killed")

        LLMEngine.step = step

    assert score(scorer).status_code == 200
    ((name, pid),) = replicas().items()
    actor = ray.get_actor(name, namespace="serve")
    ray.get(actor.__ray_call__.remote(kill_the_engine))
    assert score(scorer).status_code == 500
    started = time.monotonic()
    (result,), tries = asyncio.run(ScorerClient(scorer, JudgeConfig()).score([ScoreItem.model_validate(ITEM)]))
    print(f"answered again after {time.monotonic() - started:.0f} s, at try {tries}: {result}")
    assert tries > 1
    assert result.judgement is not None or result.attempts > 0  # the student is no judge, but it was asked
    assert pid not in replicas().values()
