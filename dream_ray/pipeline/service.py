"""`dream-ray serve`: the scorer, and the judge model that it asks, for as long as somebody needs them.

Contract: `service` starts both on one Serve instance behind one listener, yields where they are, and takes all of it down
whatever happens. The judge model is an OpenAI endpoint of ray.serve.llm; every other client of the backend `openai` may
use it too. `check` finds what cannot work before Ray starts.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dream_ray.config import Config, ConfigError, OpenAIConfig, ServedModelConfig, secret
from dream_ray.engine.settings import STRUCTURED

if TYPE_CHECKING:
    from dream_ray.pipeline.run import Run

MODEL_APP = "dream-ray-judge-model"
"""The name of the judge model's Serve application."""
MODEL_ROUTE = "/judge-model"
"""Where the judge model stands behind the listener."""
MODEL_ONGOING_REQUESTS = 64
"""Where engines follow the load: as many as keep each at this many questions, about what one batch of vLLM takes in."""


@dataclass(frozen=True)
class Service:
    """What runs: the scorer's address and its judge's name, the model's base_url if one is served, and where Prometheus
    finds the metrics of each node."""

    url: str
    judge: str
    model_url: str | None
    metrics_urls: tuple[str, ...]


def check(config: Config) -> None:
    """Raise ConfigError for the first setting that cannot work."""
    secret(config.judge.token_env, "judge.token_env")
    model = config.judge.serve_model
    if model is not None and not os.path.isfile(os.path.join(model.path, "config.json")):
        raise ConfigError(
            f"judge.serve_model.path = {model.path!r} is no folder with a config.json. It has to be a model as transformers "
            "saves it, on storage that every machine sees; download it there first."
        )


@contextmanager
def service(run: "Run") -> Iterator[Service]:
    """Everything that the judge section of the run's config names. Needs a connection to Ray."""
    from ray import serve

    from dream_ray.feedback.client import authorization
    from dream_ray.feedback.scorer import deploy_scorer, metrics_urls, start_listener, stop_scorer

    judge = run.config.judge
    headers = authorization(judge.token_env)
    url = start_listener(judge)
    try:
        model_url = None
        if judge.serve_model is not None and isinstance(judge.chat, OpenAIConfig):
            serve.run(model_app(judge.serve_model, judge.chat.model), name=MODEL_APP, route_prefix=MODEL_ROUTE)
            model_url = f"{url}{MODEL_ROUTE}/v1"
            judge = judge.model_copy(update={"chat": judge.chat.model_copy(update={"base_url": model_url})})
        handle = deploy_scorer(judge, run.config.images, run.services, url, headers)
        yield Service(url, handle.judge, model_url, tuple(metrics_urls()))
    finally:
        stop_scorer()


def describe(running: Service, token_env: str) -> str:
    """Where the service is and how to call it, for people."""
    header = f'-H "Authorization: Bearer ${token_env}" ' if token_env else ""
    item = '{"rollout_id": "1", "prompt_id": "1", "text": "What is 2 + 2?", "response": "4", "observations": []}'
    lines = [
        f"scorer:  {running.url}/v1/score, judge: {running.judge}",
        f"docs:    {running.url}/docs",
        *(f"metrics: {url}" for url in running.metrics_urls),
        *([f"model:   base_url {running.model_url}"] if running.model_url is not None else []),
        "Try it:",
        f"  curl {header}-H 'Content-Type: application/json' -d '{item}' {running.url}/v1/score",
        "Ctrl-C ends it.",
    ]
    return "\n".join(lines)


def model_app(config: ServedModelConfig, name: str) -> Any:
    """The Serve application that serves a model under the OpenAI protocol."""
    from ray.serve.llm import LLMConfig, build_openai_app

    from dream_ray.pipeline.model_server import REPLICA_ENDS_WITHIN_S, JudgeModelServer

    least, most = config.autoscale
    llm = LLMConfig(
        model_loading_config={"model_id": name, "model_source": config.path},
        engine_kwargs=engine_arguments(config),
        accelerator_config={"kind": "cpu"} if config.gpus == 0 else {"kind": "gpu"},
        runtime_env={"env_vars": engine_environment(config)},
        # Loaded at the start in any case: the scorer's first question, the health check's, must not wait for that.
        deployment_config={
            "autoscaling_config": {
                "min_replicas": least,
                "initial_replicas": max(least, 1),
                "max_replicas": most,
                # ray.serve.llm's own is a thousand million, so that it never adds an engine.
                "target_ongoing_requests": MODEL_ONGOING_REQUESTS,
            },
            "graceful_shutdown_timeout_s": REPLICA_ENDS_WITHIN_S,
        },
        log_engine_metrics=False,
        server_cls=JudgeModelServer,
    )
    return build_openai_app({"llm_configs": [llm]})


def engine_arguments(config: ServedModelConfig) -> dict[str, Any]:
    """vLLM's EngineArgs for the served model."""
    common: dict[str, Any] = {
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "trust_remote_code": config.trust_remote_code,
        "limit_mm_per_prompt": {"image": config.max_images},
        "structured_outputs_config": STRUCTURED,
    }
    if config.gpus > 0:
        return common | {"tensor_parallel_size": config.gpus}
    return common | {"enforce_eager": True, "kv_cache_memory_bytes": config.kv_cache_gib * 2**30}


def engine_environment(config: ServedModelConfig) -> dict[str, str]:
    """The environment of the served model's engine."""
    common = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    if config.gpus > 0:
        return common
    # Ray would set one thread per num_cpus, which are logical and not the cores.
    return common | {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
