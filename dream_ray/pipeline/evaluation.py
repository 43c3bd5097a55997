"""Policies from anywhere on benchmarks, without a loop: what `dream-ray evaluate` does.

Contract: `plan` finds every wrong setting before anything loads and raises ConfigError; `carry_out` measures, on a Ray that
is connected, and writes <run_dir>/metrics.json (what was measured, by which judge, and every number) and its report.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dream_ray import files
from dream_ray.chat.factory import chat_name
from dream_ray.config import BenchmarkConfig, Config, ConfigError, SourceConfig
from dream_ray.evaluate.benchmarks import BENCHMARKS
from dream_ray.pipeline.preflight import check_benchmarks
from dream_ray.train.policy import Policy, check_model_folder, find_policy

if TYPE_CHECKING:
    from dream_ray.pipeline.benchmarks import Measured
    from dream_ray.pipeline.reporting import Written


@dataclass(frozen=True)
class Evaluation:
    """What is to be measured; `config.evaluate.benchmarks` are those that were chosen."""

    config: Config
    policies: tuple[Policy, ...]


def plan(config: Config, policies: Sequence[str], benchmarks: str | None) -> Evaluation:
    """The evaluation that a user asks for. `policies` are paths, none meaning the config's student; `benchmarks` is a list
    of NAME or NAME=PATH with commas, None meaning those of the config. Raises ConfigError."""
    base = config.student.model
    found = [find_policy(uri, base) for uri in policies] or [Policy("base", base, None)]
    names = [policy.name for policy in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"Several of the policies are named {', '.join(twice)}, so their numbers could not be told apart. A policy takes "
            "its name from its folder or from its run's policy.json: measure them in two calls, or rename a folder."
        )
    for model in sorted({policy.model for policy in found}):
        check_model_folder(model)
    chosen = config.evaluate.benchmarks if benchmarks is None else _chosen(config, benchmarks)
    if not chosen:
        raise ConfigError(
            "No benchmark is chosen: evaluate.benchmarks in the config is empty. Name some with --benchmark NAME=PATH; known "
            f"are {', '.join(BENCHMARKS)}."
        )
    evaluate = config.evaluate.model_copy(update={"benchmarks": chosen})
    chosen_config = config.model_copy(update={"evaluate": evaluate})
    check_benchmarks(chosen_config)
    return Evaluation(chosen_config, tuple(found))


def _chosen(config: Config, benchmarks: str) -> tuple[BenchmarkConfig, ...]:
    """The benchmarks of a list of NAME or NAME=PATH."""
    by_name: dict[str, BenchmarkConfig] = {item.name: item for item in config.evaluate.benchmarks}
    chosen = []
    for entry in benchmarks.split(","):
        asked, _, path = entry.strip().partition("=")
        name = asked.replace("-", "_")
        if name not in BENCHMARKS:
            raise ConfigError(f"The benchmark {asked!r} is not known. Known are {', '.join(BENCHMARKS)}.")
        if path:
            source = SourceConfig.model_validate({"format": BENCHMARKS[name].source, "path": path})
            chosen.append(BenchmarkConfig.model_validate({"name": name, "source": source}))
        elif name in by_name:
            chosen.append(by_name[name])
        else:
            raise ConfigError(
                f"Where is the data of the benchmark {name}? evaluate.benchmarks in the config does not name it. Write "
                f"--benchmark {asked}=PATH, or add it to the config."
            )
    return tuple(chosen)


def judge_name(config: Config) -> str:
    """Who judges; the rules judge says that it is no model."""
    return chat_name(config.judge.chat)


def carry_out(plan: Evaluation, run_dir: str) -> "tuple[Measured, Written]":
    """The numbers, and the page that shows them beside metrics.json. Raises StageFailed."""
    from dream_ray.pipeline.benchmarks import measure
    from dream_ray.pipeline.reporting import write_report
    from dream_ray.pipeline.run import Run

    run = Run(plan.config, run_dir)
    measured = measure(run, plan.policies, plan.config.evaluate.benchmarks)
    content = {
        "policies": [dataclasses.asdict(policy) for policy in plan.policies],
        "judge": judge_name(plan.config),
        "seed": plan.config.seed,
        "benchmarks": [item.model_dump(mode="json") for item in plan.config.evaluate.benchmarks],
        "metrics": [dataclasses.asdict(metric) for metric in measured.metrics],
        "comparisons": [comparison.as_json() for comparison in measured.comparisons],
    }
    files.write_atomic(files.join(run.store.uri, "metrics.json"), json.dumps(content, indent=2).encode())
    return measured, write_report(run.store.uri)
