"""The engine's arguments and replies; no engine runs here."""

from types import SimpleNamespace

import pytest

from dream_ray.chat.factory import chat_options
from dream_ray.chat.forms import form_of
from dream_ray.chat.protocol import ChatReply, Task
from dream_ray.chat.vllm_chat import engine_arguments, reply_of, sampling_params
from dream_ray.config import OpenAIConfig, RulesConfig, VllmConfig
from dream_ray.engine.engine import Rejected

CONFIG = VllmConfig(backend="vllm", model="m", gpus=0, max_model_len=9000)


def answer(text: str, finish_reason: str | None):
    completion = SimpleNamespace(text=text, finish_reason=finish_reason, token_ids=(1, 2, 3))
    return SimpleNamespace(outputs=[completion], prompt_token_ids=[1] * 7, num_cached_tokens=4)


def test_a_whole_answer_comes_with_its_tokens() -> None:
    assert reply_of(answer("Yes", "stop")) == ChatReply("Yes", None, "", 7, 3, 4)


@pytest.mark.parametrize(
    ("finish_reason", "reason"), [("length", "truncated"), ("abort", "interrupted"), (None, "interrupted")]
)
def test_a_part_of_an_answer_is_no_answer_but_counts(finish_reason: str | None, reason: str) -> None:
    reply = reply_of(answer("10", finish_reason))
    assert (reply.text, reply.reason, reply.completion_tokens) == (None, reason, 3)


def test_a_prompt_that_the_engine_cannot_take_is_a_reason() -> None:
    assert reply_of(Rejected("prompt_too_long", "9 tokens")) == ChatReply(None, "prompt_too_long", "9 tokens")


@pytest.mark.slow  # imports vLLM
@pytest.mark.parametrize("task", list(Task))
def test_every_form_reaches_the_decoder(task: Task) -> None:
    form, structured = form_of(task), sampling_params(CONFIG, task).structured_outputs
    if task in (Task.ANSWER_RISKY, Task.ANSWER_BENIGN):
        assert structured is None
        return
    assert structured is not None
    assert (structured.choice, structured.regex) == (list(form.choices) or None, form.regex)
    assert structured.json == (None if form.choices or form.regex else form.schema)


def test_gpus_become_ranks_of_one_engine_in_one_actor() -> None:
    config = CONFIG.model_copy(update={"gpus": 4})
    assert engine_arguments(config, "/m")["tensor_parallel_size"] == 4
    options = chat_options(config, 2)
    assert options["num_gpus"] == 4
    assert "OMP_NUM_THREADS" not in options["runtime_env"]["env_vars"]


def test_a_cpu_engine_reads_the_longest_prompt_in_one_step() -> None:
    arguments = engine_arguments(CONFIG, "/m")
    assert arguments["max_num_batched_tokens"] == 9000
    assert chat_options(CONFIG, 1)["runtime_env"]["env_vars"]["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_other_backends_need_nothing_of_ray() -> None:
    assert chat_options(RulesConfig(), 1) == chat_options(OpenAIConfig(backend="openai", model="m"), 1) == {}
