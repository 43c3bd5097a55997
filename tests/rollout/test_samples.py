"""From the engine's answer to rows, and what the engine is started with; no engine runs here."""

from types import SimpleNamespace

import pytest

from dream_ray.config import RolloutConfig, StudentConfig
from dream_ray.engine.engine import EngineError, Rejected, require_same_tokens
from dream_ray.records import ErrorRow, Rollout
from dream_ray.rollout.sampler import engine_arguments, sampler_arguments, samples
from tests.records_for_tests import prompt_of
from tests.rollout.conftest import request_of


def completion(index: int, finish_reason: str = "stop") -> SimpleNamespace:
    return SimpleNamespace(index=index, text=f"answer {index}", token_ids=[1, 2], finish_reason=finish_reason)


def test_each_sample_has_its_own_seed_and_id() -> None:
    request = request_of(prompt_of("a"), n=2, seed=100, policy="policy-1")
    answer = SimpleNamespace(prompt_token_ids=[5, 6, 7], outputs=[completion(1, "length"), completion(0)])
    first, second = samples(request, answer)  # type: ignore[arg-type]
    assert isinstance(first, Rollout)
    assert isinstance(second, Rollout)
    assert (first.k, first.seed, first.text, first.finish_reason) == (0, 100, "answer 0", "stop")
    assert (second.k, second.seed, second.text, second.finish_reason) == (1, 101, "answer 1", "length")
    assert (first.prompt_tokens, first.completion_tokens, first.policy) == (3, 2, "policy-1")
    assert first.rollout_id != second.rollout_id


def test_an_interrupted_sample_costs_only_itself() -> None:
    answer = SimpleNamespace(prompt_token_ids=[5], outputs=[completion(0, "abort"), completion(1)])
    first, second = samples(request_of(prompt_of("a")), answer)  # type: ignore[arg-type]
    assert isinstance(first, ErrorRow)
    assert first.reason == "sampling_interrupted"
    assert isinstance(second, Rollout)


def test_a_rejected_request_is_one_error() -> None:
    request = request_of(prompt_of("a"), n=8)
    (error,) = samples(request, Rejected("prompt_too_long", "600 tokens"))
    assert error == ErrorRow("rollout", request.prompt.prompt_id, "prompt_too_long", "600 tokens", 1)


def test_tokens_that_differ_from_training_are_an_error_that_says_where() -> None:
    require_same_tokens([1, 2, 3], [1, 2, 3])
    with pytest.raises(EngineError, match="2 tokens, training as 3; they differ from token 1"):
        require_same_tokens([1, 9], [1, 2, 3])


def test_a_cpu_engine_reads_every_prompt_in_one_step() -> None:
    arguments = engine_arguments(StudentConfig(model="m", max_model_len=9000), RolloutConfig(), 20, "/m")
    assert arguments["enable_chunked_prefill"] is False
    assert arguments["max_num_batched_tokens"] >= 9000


def test_adapters_come_with_the_requests_or_are_merged() -> None:
    student = StudentConfig(model="m")
    assert "enable_lora" not in engine_arguments(student, RolloutConfig(), 20, "/m")
    for rollout in (RolloutConfig(adapters="request"), RolloutConfig(gpus_per_engine=1)):
        assert engine_arguments(student, rollout, 20, "/m")["max_lora_rank"] == 32


def test_a_gpu_engine_keeps_the_engines_own_rules() -> None:
    rollout = RolloutConfig(gpus_per_engine=2, engines=3)
    arguments = engine_arguments(StudentConfig(model="m"), rollout, 16, "/m")
    assert arguments["tensor_parallel_size"] == 2
    assert not arguments.keys() & {"enforce_eager", "kv_cache_memory_bytes", "enable_chunked_prefill"}
    given = sampler_arguments(rollout)
    assert given["num_gpus"] == 2
    assert given["compute"].min_size == given["compute"].max_size == 3
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in given["runtime_env"]["env_vars"]


def test_a_rank_that_vllm_does_not_serve_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lora\.rank = 600"):
        engine_arguments(StudentConfig(model="m"), RolloutConfig(), 600, "/m")
