"""The stages that sample and judge: rollout and judge of a round, answers, judgements and metrics of a policy.

One pass serves several of them: whatever needs the same base weights is sampled by the same engines (policies differ by
their adapter only, which vLLM takes per request), and every answer goes to the scorer while the next ones are sampled.

Contract: as in data_stages.py. `sample` takes the jobs that may run together and returns, for each, its finished rollout
and judge stages; jobs that are done are not run, and a job whose rollouts are there is only judged.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data

from dream_ray.config import Config
from dream_ray.evaluate.metrics import policy_metrics
from dream_ray.feedback.client import JudgeActor
from dream_ray.outcomes import struct_of
from dream_ray.pipeline.data_stages import WITH_OBSERVATIONS, join_observations, labelled
from dream_ray.pipeline.parts import Tally, Target, WorkItem, part_rows, read_part, run_pass, write_part
from dream_ray.pipeline.plans import Plan, SampleJob, in_splits
from dream_ray.pipeline.run import Done, Outcome, Run
from dream_ray.pipeline.store import read_records
from dream_ray.records import ErrorRow, Judgement, Metric, Observation, Prompt, Rollout, from_row, to_table
from dream_ray.rollout.requests import SampleRequest, request_table, sample_seed
from dream_ray.rollout.sampler import Sampler, sampler_arguments
from dream_ray.train.policy import Policy


@dataclass(frozen=True)
class Sampled:
    """A job's finished stages."""

    rollouts: Done
    judgements: Done


def sample(
    run: Run, jobs: Sequence[SampleJob], prompts: Done, observed: Done, scorer_url: Callable[[], str]
) -> dict[str, Sampled]:
    """The finished stages of each job by its key. `scorer_url` starts the scorer where it does not run yet."""
    plans = {job.key: run.plans.sampled(job, prompts.ref, observed.ref) for job in jobs}
    rollouts = {key: done for key, (sampling, _) in plans.items() if (done := run.done(sampling))}
    judgements = {key: done for key, (_, judging) in plans.items() if (done := run.done(judging))}
    for model in dict.fromkeys(job.policy.model for job in jobs):
        fresh = [job for job in jobs if job.policy.model == model and job.key not in rollouts]
        if fresh:
            stages = _sample_and_judge(run, model, fresh, plans, prompts, observed, scorer_url())
            for job in fresh:
                rollouts[job.key], judgements[job.key] = stages[job.rollout_key], stages[job.judge_key]
    for job in jobs:
        if job.key not in judgements:
            plan = plans[job.key][1]
            judgements[job.key] = _judge_again(run, job, plan, rollouts[job.key], prompts, observed, scorer_url())
    return {job.key: Sampled(rollouts[job.key], judgements[job.key]) for job in jobs}


def _items(job: SampleJob, observed: Done) -> list[WorkItem]:
    rows = part_rows(observed.ref.data_uri)
    return [WorkItem(job.key, part, rows[part] * job.n) for part in job.parts(rows)]


def _targets(job: SampleJob, plans: tuple[Plan, Plan]) -> list[Target]:
    return [
        Target(plans[0].ref, Rollout, job.key, "rollout", "rollout"),
        Target(plans[1].ref, Judgement, job.key, "judgement", "judge"),
    ]


def _sample_and_judge(
    run: Run,
    model: str,
    jobs: Sequence[SampleJob],
    plans: Mapping[str, tuple[Plan, Plan]],
    prompts: Done,
    observed: Done,
    url: str,
) -> dict[str, Done]:
    """One pass over all jobs of a model, engines, then the scorer; the finished stages by key."""
    config = run.config
    by_key = {job.key: job for job in jobs}

    def read(key: str, part: str) -> Iterable[pa.Table]:
        job = by_key[key]
        requests = [
            SampleRequest(
                job=key,
                part=part,
                policy=job.policy.name,
                adapter=job.policy.adapter,
                prompt=from_row(Prompt, row["prompt"]),
                observations=tuple(from_row(Observation, item) for item in row["observations"]),
                n=job.n,
                temperature=job.temperature,
                top_p=job.top_p,
                max_tokens=config.rollout.max_tokens,
                seed=sample_seed(job.seed, row["prompt"]["prompt_id"], job.round),
            )
            for row in join_observations(prompts.ref.data_uri, observed.ref.data_uri, part)
        ]
        if requests:
            yield request_table(requests)

    def stages(dataset: ray.data.Dataset) -> ray.data.Dataset:
        return _judged(with_samples(dataset, config, model), config, url)

    def work() -> Mapping[str, Outcome]:
        tallies = run_pass(
            "sampling " + ", ".join(by_key),
            [item for job in jobs for item in _items(job, observed)],
            read,
            stages,
            [target for job in jobs for target in _targets(job, plans[job.key])],
            config.max_failure_rate,
        )
        return {key: Outcome(tally) for key, tally in tallies.items()}

    pending = [plan for job in jobs for plan in plans[job.key]]
    return {done.ref.key: done for done in run.carry_out(pending, work)}


def with_samples(dataset: ray.data.Dataset, config: Config, model: str) -> ray.data.Dataset:
    """The operator that samples answers to SampleRequest rows from a base model and its adapters."""
    student = config.student.model_copy(update={"model": model})
    return dataset.map_batches_internal(
        Sampler,
        fn_constructor_args=(student, config.rollout, config.lora.rank, config.images),
        batch_format="pyarrow",
        batch_size=None,
        **sampler_arguments(config.rollout),
    )


def _judged(dataset: ray.data.Dataset, config: Config, url: str) -> ray.data.Dataset:
    """The operator that sends sampled answers to the scorer."""
    return dataset.map_batches(
        JudgeActor,
        fn_constructor_args=(url, config.judge),
        batch_format="pyarrow",
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=1),
    )


def _judge_again(run: Run, job: SampleJob, plan: Plan, rollouts: Done, prompts: Done, observed: Done, url: str) -> Done:
    """Judge rollouts that were sampled earlier."""

    def read(key: str, part: str) -> Iterable[pa.Table]:
        sampled = read_part(rollouts.ref.data_uri, part)
        if sampled is None:
            return
        joined = {
            row["prompt"]["prompt_id"]: row
            for row in join_observations(prompts.ref.data_uri, observed.ref.data_uri, part)
        }
        rows = [joined[rollout["prompt_id"]] | {"rollout": rollout, "error": None} for rollout in sampled.to_pylist()]
        schema = WITH_OBSERVATIONS.append(pa.field("rollout", struct_of(Rollout))).append(
            pa.field("error", struct_of(ErrorRow))
        )
        yield labelled(pa.Table.from_pylist(rows, schema=schema), key, part)

    def work() -> Mapping[str, Outcome]:
        items = [WorkItem(job.key, part, count) for part, count in part_rows(rollouts.ref.data_uri).items()]
        targets = [Target(plan.ref, Judgement, job.key, "judgement", "judge")]
        limit = run.config.max_failure_rate
        tallies = run_pass(
            job.judge_key, items, read, lambda dataset: _judged(dataset, run.config, url), targets, limit
        )
        return {key: Outcome(tally) for key, tally in tallies.items()}

    return run.carry_out([plan], work)[0]


def evaluate(run: Run, policy: Policy, prompts: Done, sampled: Sampled) -> tuple[Done, list[Metric]]:
    """The metrics of a policy on the evaluated splits, from its judged answers."""
    splits = [split.value for split in run.config.evaluate.splits]
    plan = run.plans.evaluate(policy.name, prompts.ref, sampled.rollouts.ref, sampled.judgements.ref)
    key = plan.ref.key

    def work() -> Mapping[str, Outcome]:
        rows = ray.get(
            _measure.remote(
                policy.name, splits, prompts.ref.data_uri, sampled.judgements.ref.data_uri, plan.ref.data_uri
            )
        )
        return {key: Outcome(Tally(rows_out=rows))}

    done = run.done(plan) or run.carry_out([plan], work)[0]
    return done, read_records(Metric, done.ref.data_uri)


@ray.remote(num_cpus=1)
def _measure(policy: str, splits: list[str], prompts_uri: str, judgements_uri: str, data_uri: str) -> int:
    """Compute and write the metrics, per source of prompts; how many there are."""
    found: list[Any] = []
    for part in part_rows(prompts_uri):
        if in_splits(part, splits):
            table = read_part(prompts_uri, part)
            found += [from_row(Prompt, row) for row in table.to_pylist()] if table is not None else []
    verdicts = {judgement.prompt_id: judgement.verdict for judgement in read_records(Judgement, judgements_uri)}
    metrics = policy_metrics(policy, found, verdicts)
    write_part(data_uri, "metrics", to_table(Metric, metrics))
    return len(metrics)
