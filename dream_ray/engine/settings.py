"""How an engine of ours is started, whatever it is for: vLLM's arguments, and what Ray gives to the actor around it.

Contract: pure. `base_arguments` are the EngineArgs that sampling, teaching and judging share; `actor_options` are the
resources and the environment of an actor or replica that holds one engine. With several GPUs vLLM starts a worker for each
(tensor parallel) inside the actor that holds them all, so one machine has to have that many.
"""

import os
from typing import Any

PREFILL_TOKENS = 4096
"""Prompt tokens that one step of a CPU engine reads at most, vLLM's own figure for offline use on a CPU."""

STRUCTURED = {"backend": "xgrammar", "disable_any_whitespace": True}
"""How an engine keeps a teacher or judge to a form. No free whitespace in JSON: it costs tokens, and a weak model fills its
whole answer with it."""


def base_arguments(
    *, model: str, dtype: str, max_model_len: int, images: int, gpus: int, kv_cache_gib: int, trust_remote_code: bool
) -> dict[str, Any]:
    """EngineArgs for the local folder `model`: at most `images` images a prompt, `gpus` tensor parallel ranks or, at 0,
    vLLM's CPU build with a KV cache of `kv_cache_gib`."""
    common: dict[str, Any] = {
        "model": model,
        "trust_remote_code": trust_remote_code,
        "dtype": dtype,
        "max_model_len": max_model_len,
        "limit_mm_per_prompt": {"image": images},
        "seed": 0,
        "disable_log_stats": True,
    }
    if gpus > 0:
        return common | {"tensor_parallel_size": gpus}
    return common | {
        "enforce_eager": True,
        "kv_cache_memory_bytes": kv_cache_gib * 2**30,
        # A prompt that is read in two steps rewinds its random generator in between, which torch's CPU generator
        # cannot: vLLM 0.32 dies of "CPU Generator does not use offset". So each prompt is read in one step.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(PREFILL_TOKENS, max_model_len),
    }


def actor_options(gpus: int, engines: int) -> dict[str, Any]:
    """Ray's options for each of `engines` actors or replicas that hold an engine on `gpus` GPUs."""
    environment = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    if gpus == 0:
        # In the actor's own process a CPU engine starts in a third of the time and leaves nothing behind when the actor
        # is killed. Ray would set one thread per num_cpus, which are logical and more than the cores.
        threads = max(1, len(os.sched_getaffinity(0)) // engines)
        environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(threads)}
    return {"num_cpus": 1, "num_gpus": gpus, "runtime_env": {"env_vars": environment}}
