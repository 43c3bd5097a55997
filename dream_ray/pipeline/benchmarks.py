"""Policies on benchmarks: the one entry that the loop and `dream-ray evaluate` share, and the stages metrics and compare.

Contract: as in data_stages.py. `measure` takes policies in the order of their training and returns their numbers, and how
these changed from the first policy and from step to step; what is done is not done again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from dream_ray.config import BenchmarkConfig
from dream_ray.evaluate.benchmarks import BENCHMARKS
from dream_ray.evaluate.benchmarks.measure import answers_of, benchmark_metrics, outcomes
from dream_ray.evaluate.benchmarks.protocol import Answer
from dream_ray.evaluate.paired import Comparison, paired_bootstrap
from dream_ray.pipeline.benchmark_stages import (
    Answered,
    answer,
    benchmark_job,
    benchmark_prompts,
    held_out_parts,
    wanted_prompts,
)
from dream_ray.pipeline.leaks import trained_on
from dream_ray.pipeline.parts import StageFailed, Tally, write_part
from dream_ray.pipeline.past_run import COMPARE
from dream_ray.pipeline.run import Done, Outcome, Run
from dream_ray.pipeline.store import read_records
from dream_ray.records import Grade, Metric, Prompt, Rollout, to_table
from dream_ray.train.policy import Policy


@dataclass(frozen=True)
class Measured:
    """The numbers of policies on benchmarks, and how they changed between the pairs of `compared`."""

    metrics: tuple[Metric, ...]
    comparisons: tuple[Comparison, ...]


def measure(run: Run, policies: Sequence[Policy], chosen: Sequence[BenchmarkConfig]) -> Measured:
    """The numbers of every policy on the chosen benchmarks."""
    prompts = {item.name: benchmark_prompts(run, item) for item in chosen}
    jobs = [benchmark_job(run, policy, BENCHMARKS[name], done) for policy in policies for name, done in prompts.items()]
    answered = answer(run, jobs)
    metrics = [metric for item in answered for metric in _metrics(run, item)]
    found = {(item.job.benchmark.name, item.job.policy.name): item for item in answered}
    comparisons = [
        row
        for name in prompts
        for before, after in compared([policy.name for policy in policies])
        for row in _compare(run, found[name, before], found[name, after])
    ]
    return Measured(tuple(metrics), tuple(comparisons))


def compared(names: Sequence[str]) -> list[tuple[str, str]]:
    """Which policies are compared, (before, after): each with the one that precedes it, and with the first one."""
    pairs = [(before, after) for place, after in enumerate(names) if place for before in (names[place - 1], names[0])]
    return list(dict.fromkeys(pairs))


def prepare(run: Run, training: Done) -> None:
    """Ingest the config's benchmarks before anything is trained. Raises StageFailed where one cannot be used, or where the
    run trains on its prompts."""
    for chosen in run.config.evaluate.benchmarks:
        found = ray.get(trained_on.remote(training.ref.data_uri, benchmark_prompts(run, chosen).ref.data_uri))
        if found:
            raise StageFailed(
                f"benchmarks/{chosen.name}: {len(found)} of its prompts are training prompts of this run "
                f"({', '.join(found[:3])}), so its numbers would say nothing. Take these rows out of the sources, or leave "
                "the benchmark out."
            )


def _metrics(run: Run, answered: Answered) -> list[Metric]:
    """The numbers of one policy on one benchmark."""
    job = answered.job
    key = f"{job.key}/metrics"
    inputs = {"prompts": job.prompts, "answers": answered.rollouts, "grades": answered.grades}
    return _finished(run, Metric, key, {}, inputs, _measure, job.policy.name, job.benchmark.name, answered.uris)


def _compare(run: Run, before: Answered, after: Answered) -> list[Comparison]:
    """How each number of a benchmark changed from one policy to another, over the same prompts."""
    key = f"{after.job.key}/{COMPARE}{before.job.policy.name}"
    settings = {"before": before.job.policy.name, "seed": run.config.seed}
    inputs = {
        f"{role}_{name}": done
        for role, item in (("before", before), ("after", after))
        for name, done in (("answers", item.rollouts), ("grades", item.grades))
    }
    names = (before.job.policy.name, after.job.policy.name)
    return _finished(
        run,
        Comparison,
        key,
        settings,
        inputs,
        _differences,
        names,
        after.job.benchmark.name,
        before.uris,
        after.uris,
        run.config.seed,
    )


def _finished(
    run: Run, kind: type[Any], key: str, settings: Mapping[str, Any], inputs: Mapping[str, Done], task: Any, *given: Any
) -> list[Any]:
    """The rows of a small stage that one Ray task writes; the task takes `given` and the stage's folder."""
    plan = run.plans.plan(key, 1, settings, {name: done.ref for name, done in inputs.items()})

    def work() -> Mapping[str, Outcome]:
        return {key: Outcome(Tally(rows_out=ray.get(task.remote(*given, plan.ref.data_uri))))}

    done = run.done(plan) or run.carry_out([plan], work)[0]
    return read_records(kind, done.ref.data_uri)


def _rows(name: str, uris: tuple[str, str, str]) -> tuple[list[Prompt], dict[str, list[Answer]]]:
    """A benchmark's prompts and a policy's answers to them."""
    benchmark = BENCHMARKS[name]
    prompts_uri, rollouts_uri, grades_uri = uris
    prompts = [
        prompt for part in held_out_parts(prompts_uri) for prompt in wanted_prompts(benchmark, prompts_uri, part)
    ]
    rollouts, grades = read_records(Rollout, rollouts_uri), read_records(Grade, grades_uri)
    return prompts, answers_of(benchmark, prompts, rollouts, grades)


@ray.remote(num_cpus=1)
def _measure(policy: str, name: str, uris: tuple[str, str, str], data_uri: str) -> int:
    """Compute and write the metrics; how many there are."""
    metrics = benchmark_metrics(policy, BENCHMARKS[name], *_rows(name, uris))
    write_part(data_uri, "metrics", to_table(Metric, metrics))
    return len(metrics)


@ray.remote(num_cpus=1)
def _differences(
    names: tuple[str, str],
    name: str,
    before: tuple[str, str, str],
    after: tuple[str, str, str],
    seed: int,
    data_uri: str,
) -> int:
    """Compute and write the comparisons; how many there are."""
    benchmark = BENCHMARKS[name]
    old, new = (outcomes(benchmark, *_rows(name, uris)) for uris in (before, after))
    rows = [
        Comparison(*names, name, item.name, item.wants_high, paired_bootstrap(old[item.name], new[item.name], seed))
        for item in benchmark.measures
    ]
    write_part(data_uri, "comparisons", to_table(Comparison, rows))
    return len(rows)
