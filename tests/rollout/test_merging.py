"""The sampler where adapters are merged into the weights: one engine after the other, each for its own policy."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dream_ray.config import ImageConfig, RolloutConfig, StudentConfig
from dream_ray.engine.engine import EngineError
from dream_ray.records import Prompt
from dream_ray.rollout.requests import SampleRequest, request_table
from dream_ray.rollout.sampler import Sampler, sampler_arguments
from tests.records_for_tests import prompt_of, stored_image
from tests.rollout.conftest import request_of

pytestmark = pytest.mark.slow

GREEDY = {"n": 1, "temperature": 0.0, "max_tokens": 16}


@pytest.fixture(scope="module")
def sampler(student: StudentConfig) -> Iterator[Sampler]:
    rollout = RolloutConfig(dtype="float32")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sampler_arguments(rollout)["runtime_env"]["env_vars"].items():
            patch.setenv(name, value)
        sampler = Sampler(student, rollout, 16, ImageConfig())
        yield sampler
        sampler.__del__()


@pytest.fixture
def prompts(tmp_path: Path) -> list[Prompt]:
    return [prompt_of(f"Tell me a story about {c} paint.", stored_image(tmp_path, c)) for c in ("red", "green")]


def test_batches_of_two_policies_at_once(sampler: Sampler, prompts: list[Prompt], adapter: str) -> None:
    """Two calls that need other weights wait for one another, and each gets its own policy's answers."""
    base = [request_of(prompt, **GREEDY) for prompt in prompts]
    tuned = [request_of(prompt, policy="policy-0", adapter=adapter, **GREEDY) for prompt in prompts]

    async def both() -> list[list[str]]:
        async def texts(requests: list[SampleRequest]) -> list[str]:
            table = await sampler(request_table(requests))
            return [row["rollout"]["text"] for row in table.to_pylist()]

        return list(await asyncio.gather(texts(base), texts(tuned), texts(base)))

    first, second, third = asyncio.run(both())
    assert first == third
    assert all(with_adapter != plain for with_adapter, plain in zip(second, first, strict=True))


def test_an_adapter_without_effect_stops_the_pass(
    sampler: Sampler, prompts: list[Prompt], make_adapter: Callable[[float], str], tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="B matrices are zero"):
        asyncio.run(sampler(request_table([request_of(prompts[0], adapter=make_adapter(0.0), **GREEDY)])))
    with pytest.raises(EngineError, match="cannot be read"):
        asyncio.run(sampler(request_table([request_of(prompts[0], adapter=str(tmp_path / "none"), **GREEDY)])))
    rows = asyncio.run(sampler(request_table([request_of(prompts[0], **GREEDY)]))).to_pylist()
    assert rows[0]["rollout"]["text"]
