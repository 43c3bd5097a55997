"""The sampler around a real engine on the real student, in this process."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dream_ray.config import ImageConfig, RolloutConfig, StudentConfig
from dream_ray.engine.engine import EngineError
from dream_ray.records import Prompt
from dream_ray.rollout.requests import SampleRequest, request_table
from dream_ray.rollout.sampler import Sampler, sampler_arguments
from tests.records_for_tests import prompt_of, stored_image
from tests.rollout.conftest import MAX_MODEL_LEN, request_of

pytestmark = pytest.mark.slow

RANK = 16


@pytest.fixture(scope="module")
def sampler(student: StudentConfig) -> Iterator[Sampler]:
    """One engine for all tests here, in the environment that the actor would have.

    In float32: in bfloat16 a token can turn out otherwise because other prompts share its step, whatever the seeds.
    """
    rollout = RolloutConfig(dtype="float32", adapters="request")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sampler_arguments(rollout)["runtime_env"]["env_vars"].items():
            patch.setenv(name, value)
        sampler = Sampler(student, rollout, RANK, ImageConfig())
        yield sampler
        sampler._engine.close()


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    """Four prompts, each with its own picture."""
    folder = tmp_path_factory.mktemp("images")
    colours = ("red", "green", "blue", "white")
    return [prompt_of(f"Tell me a story about {colour} paint.", stored_image(folder, colour)) for colour in colours]


def ask(sampler: Sampler, requests: Sequence[SampleRequest]) -> list[dict[str, Any]]:
    return list(asyncio.run(sampler(request_table(requests))).to_pylist())


def texts(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [row["rollout"]["text"] for row in rows]


def test_the_kth_sample_is_what_its_seed_alone_gives(sampler: Sampler, prompts: list[Prompt]) -> None:
    together = ask(sampler, [request_of(prompts[0], n=3, seed=70, max_tokens=16)])
    alone = [ask(sampler, [request_of(prompts[0], n=1, seed=70 + k, max_tokens=16)])[0] for k in range(3)]
    assert texts(together) == texts(alone)
    assert [row["rollout"]["seed"] for row in together] == [70, 71, 72]
    assert len(set(texts(together))) == 3


def test_the_same_seeds_give_the_same_texts(sampler: Sampler, prompts: list[Prompt]) -> None:
    requests = [request_of(prompt, max_tokens=16) for prompt in prompts]
    first, second = ask(sampler, requests), ask(sampler, requests)
    assert first == second
    assert len(set(texts(first))) == 8


def test_an_adapter_changes_its_rows_and_no_others(sampler: Sampler, prompts: list[Prompt], adapter: str) -> None:
    greedy = {"n": 1, "temperature": 0.0, "max_tokens": 16}
    before = texts(ask(sampler, [request_of(prompt, **greedy) for prompt in prompts]))
    mixed = [request_of(prompt, **greedy) for prompt in prompts]
    mixed += [request_of(prompt, policy="policy-0", adapter=adapter, **greedy) for prompt in prompts]
    after = texts(ask(sampler, mixed))
    assert after[:4] == before
    assert all(with_adapter != base for with_adapter, base in zip(after[4:], before, strict=True))


def test_an_adapter_without_effect_stops_the_pass(
    sampler: Sampler, prompts: list[Prompt], make_adapter: Callable[[float], str]
) -> None:
    with pytest.raises(EngineError, match="changes no log-probability"):
        ask(sampler, [request_of(prompts[0], adapter=make_adapter(0.0))])
    assert len(ask(sampler, [request_of(prompts[0])])) == 2


def test_an_adapter_that_is_not_there_stops_the_pass(sampler: Sampler, prompts: list[Prompt], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot load the adapter"):
        ask(sampler, [request_of(prompts[0], adapter=str(tmp_path / "none"))])
    assert len(ask(sampler, [request_of(prompts[0])])) == 2


def test_a_long_prompt_is_refused_with_its_length(sampler: Sampler, prompts: list[Prompt]) -> None:
    long = prompt_of("word " * (MAX_MODEL_LEN - 40), *prompts[0].images)
    rows = ask(sampler, [request_of(long, max_tokens=64), request_of(prompts[1])])
    assert [row["rollout"] is None for row in rows] == [True, False, False]
    assert rows[0]["error"]["reason"] == "prompt_too_long"
    assert rows[0]["error"]["row_id"] == long.prompt_id
    tokens = int(rows[0]["error"]["detail"].split()[0])
    assert MAX_MODEL_LEN - 64 < tokens < MAX_MODEL_LEN
    # The limit is exact: an answer that just fits is sampled.
    (row,) = ask(sampler, [request_of(long, n=1, max_tokens=MAX_MODEL_LEN - tokens)])
    assert row["rollout"]["prompt_tokens"] == tokens


def test_an_image_that_cannot_be_read_costs_its_row(sampler: Sampler, prompts: list[Prompt], tmp_path: Path) -> None:
    gone = prompt_of("What is this?", stored_image(tmp_path))
    (tmp_path / "red.png").unlink()
    rows = ask(sampler, [request_of(prompts[0]), request_of(gone), request_of(prompts[1])])
    assert [row["rollout"] is None for row in rows] == [False, False, True, False, False]
    assert rows[2]["error"]["reason"] == "image_missing"
    assert [row["prompt"]["prompt_id"] for row in rows] == [prompts[0].prompt_id] * 2 + [gone.prompt_id] + [
        prompts[1].prompt_id
    ] * 2


def test_text_that_spells_the_image_mark_costs_its_row(sampler: Sampler, prompts: list[Prompt]) -> None:
    odd = prompt_of("What does <image> mean in a prompt?", *prompts[0].images)
    rows = ask(sampler, [request_of(odd), request_of(prompts[1])])
    assert rows[0]["error"]["reason"] == "image_mark_in_text"
    assert [row["rollout"] is None for row in rows] == [True, False, False]


def test_more_prompt_tokens_than_a_step_takes(sampler: Sampler, prompts: list[Prompt]) -> None:
    """A seeded prompt that is cut between two steps kills vLLM's CPU engine; see engine_arguments."""
    many = [prompt_of("word " * 300 + str(i), *prompts[i % 4].images) for i in range(20)]
    rows = ask(sampler, [request_of(prompt, max_tokens=2) for prompt in many])
    assert len(rows) == 40
    assert all(row["error"] is None for row in rows)


def test_tokens_that_training_would_not_see_stop_the_pass(
    sampler: Sampler, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "_checked_tokens", False)
    monkeypatch.setattr(sampler._reader, "ids", lambda text, images: (1, 2, 3))
    with pytest.raises(EngineError, match="training as 3"):
        ask(sampler, [request_of(prompts[0])])
