"""The head of an engine that computes in bfloat16, with a real engine on the real student."""

import pytest
from vllm import SamplingParams

from dream_ray.config import RolloutConfig, StudentConfig
from dream_ray.engine.engine import Engine, Query
from dream_ray.rollout.sampler import engine_arguments, sampler_arguments

pytestmark = pytest.mark.slow

STEP = 2**-5
"""Logits of 4 and more in bfloat16 are multiples of it."""


def test_logits_are_finer_than_bfloat16(student: StudentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or words that training tells apart come out alike, and greedy sampling takes the first in the vocabulary."""
    rollout = RolloutConfig(dtype="bfloat16")
    for name, value in sampler_arguments(rollout)["runtime_env"]["env_vars"].items():
        monkeypatch.setenv(name, value)
    engine = Engine(engine_arguments(student, rollout, 0, student.model), rollout.engine_timeout_s)
    try:
        asked = Query("Name a fruit.", True, (), (), SamplingParams(max_tokens=1, logprobs=8), 1, None, None)
        (answer,) = engine.submit([asked])
        (words,) = answer.result(120).outputs[0].logprobs
    finally:
        engine.close()
    likely = sorted(word.logprob for word in words.values())
    steps = [(value - likely[0]) / STEP for value in likely[1:]]
    assert any(abs(step - round(step)) > 0.05 for step in steps), steps
