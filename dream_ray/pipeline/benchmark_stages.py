"""The stages that answer a benchmark's prompts and grade the answers: prompts, answers, judge.

Contract: as in data_stages.py. All policies and benchmarks of one base model share the engines of one pass, and an answer
is judged while the next ones are sampled, or after all of them (placement.py). A benchmark's prompts are held out: no
training stage reads them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import ray
import ray.data

from dream_ray import files
from dream_ray.chat.factory import chat_options
from dream_ray.config import BenchmarkConfig
from dream_ray.evaluate.benchmarks import BENCHMARKS, Benchmark
from dream_ray.evaluate.benchmarks.grade import GradeActor
from dream_ray.outcomes import struct_of
from dream_ray.pipeline import placement
from dream_ray.pipeline.data_stages import ingest, labelled
from dream_ray.pipeline.guard import Guarded
from dream_ray.pipeline.parts import (
    StageFailed,
    Target,
    WorkItem,
    part_rows,
    read_part,
    run_pass,
)
from dream_ray.pipeline.plans import SAMPLING_VERSION, Plan, in_splits
from dream_ray.pipeline.run import Done, Outcome, Run
from dream_ray.pipeline.sampling_stages import with_samples
from dream_ray.records import ErrorRow, Grade, Prompt, Rollout, Split, from_row
from dream_ray.rollout.requests import SampleRequest, request_table, sample_seed
from dream_ray.train.policy import Policy, model_digest


@dataclass(frozen=True)
class Job:
    """A policy on a benchmark: its prompts and the plans of its answers and of their grades."""

    policy: Policy
    benchmark: Benchmark
    prompts: Done
    sampling: Plan
    judging: Plan

    @property
    def key(self) -> str:
        return _key(self.policy, self.benchmark)


@dataclass(frozen=True)
class Answered:
    """A job's finished stages."""

    job: Job
    rollouts: Done
    grades: Done

    @property
    def uris(self) -> tuple[str, str, str]:
        return self.job.prompts.ref.data_uri, self.rollouts.ref.data_uri, self.grades.ref.data_uri


def _key(policy: Policy, benchmark: Benchmark) -> str:
    return f"{policy.name}/benchmarks/{benchmark.name}"


def benchmark_prompts(run: Run, chosen: BenchmarkConfig) -> Done:
    """The prompts of a benchmark's source. Raises StageFailed where none of them is held out and wanted."""
    done = ingest(run, f"benchmarks/{chosen.name}/prompts", (chosen.source,))
    if not ray.get(_count.remote(chosen.name, done.ref.data_uri)):
        raise StageFailed(
            f"benchmarks/{chosen.name}: {chosen.source.path} holds no held-out prompt of this benchmark, of "
            f"{done.manifest.rows_out} that were read as {chosen.source.format}. docs/evaluate.md says which data it needs; "
            "prompts of your own need the split held_out."
        )
    return done


@ray.remote(num_cpus=1)
def _count(name: str, prompts_uri: str) -> int:
    return sum(len(wanted_prompts(BENCHMARKS[name], prompts_uri, part)) for part in held_out_parts(prompts_uri))


def held_out_parts(prompts_uri: str) -> list[str]:
    return [part for part in part_rows(prompts_uri) if in_splits(part, (Split.HELD_OUT,))]


def wanted_prompts(benchmark: Benchmark, prompts_uri: str, part: str) -> list[Prompt]:
    """The benchmark's prompts in a part of its source."""
    table = read_part(prompts_uri, part)
    found = [] if table is None else [from_row(Prompt, row) for row in table.to_pylist()]
    return [prompt for prompt in found if benchmark.wants(prompt)]


def benchmark_job(run: Run, policy: Policy, benchmark: Benchmark, prompts: Done) -> Job:
    config = run.config
    settings = {
        "policy": policy.name,
        "model": model_digest(policy.model),
        "adapter": None if policy.adapter is None else adapter_digest(policy.adapter),
        "n": benchmark.answers,
        "temperature": benchmark.temperature,
        "max_tokens": config.evaluate.answer_tokens(benchmark.max_tokens),
        "max_model_len": config.student.max_model_len,
        "dtype": config.rollout.dtype,
        "seed": config.seed,
    }
    key = _key(policy, benchmark)
    sampling = run.plans.plan(f"{key}/answers", SAMPLING_VERSION, settings, {"prompts": prompts.ref})
    asked = {"rollouts": sampling.ref.fingerprint, "tasks": sorted(benchmark.tasks)}
    chat = config.judge.chat if benchmark.tasks else None
    judging = run.plans.plan(f"{key}/judge", 1, asked, {}, chat, benchmark.tasks)
    return Job(policy, benchmark, prompts, sampling, judging)


def adapter_digest(uri: str) -> str:
    """sha256 over the name and content of every file of an adapter's folder: trainings differ in nothing else."""
    digest = hashlib.sha256()
    for path in files.list_files(uri):
        name = path.rsplit("/", 1)[1]
        digest.update(json.dumps([name, hashlib.sha256(files.read_bytes(files.join(uri, name))).hexdigest()]).encode())
    return digest.hexdigest()


def answer(run: Run, jobs: Sequence[Job]) -> list[Answered]:
    """Every job's answers and grades; what is done is not done again, and answers that are there are only graded."""
    rollouts = {job.key: done for job in jobs if (done := run.done(job.sampling))}
    grades = {job.key: done for job in jobs if (done := run.done(job.judging))}
    for model in dict.fromkeys(job.policy.model for job in jobs):
        fresh = [job for job in jobs if job.policy.model == model and job.key not in rollouts]
        if fresh:
            together = run.placement.judge_while_sampling
            finished = _sample_pass(run, model, fresh, together)
            rollouts |= {job.key: finished[job.sampling.ref.key] for job in fresh}
            grades |= {job.key: finished[job.judging.ref.key] for job in fresh if together}
    ungraded = [job for job in jobs if job.key not in grades]
    if ungraded:
        finished = _grade_again(run, ungraded, rollouts)
        grades |= {job.key: finished[job.judging.ref.key] for job in ungraded}
    return [Answered(job, rollouts[job.key], grades[job.key]) for job in jobs]


def _sample_pass(run: Run, model: str, jobs: Sequence[Job], grading: bool) -> dict[str, Done]:
    """One pass over all jobs of a base model, engines, then the judge if `grading`; the finished stages by key."""
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
                prompt=prompt,
                observations=(),
                n=job.benchmark.answers,
                temperature=job.benchmark.temperature,
                top_p=1.0,
                max_tokens=config.evaluate.answer_tokens(job.benchmark.max_tokens),
                seed=sample_seed(config.seed, prompt.prompt_id, 0),
            )
            for prompt in wanted_prompts(job.benchmark, job.prompts.ref.data_uri, part)
        ]
        if requests:
            yield request_table(requests)

    def stages(dataset: ray.data.Dataset) -> ray.data.Dataset:
        sampled = with_samples(dataset, run, model)
        return _graded(run, jobs, sampled) if grading else sampled

    targets = [Target(job.sampling.ref, Rollout, job.key, "rollout", "rollout") for job in jobs]
    # A job's last target is the one that its progress is told by.
    targets += [_grade_target(job) for job in jobs if grading]
    items = [
        WorkItem(job.key, part, rows * job.benchmark.answers)
        for job in jobs
        for part, rows in part_rows(job.prompts.ref.data_uri).items()
        if in_splits(part, (Split.HELD_OUT,))
    ]

    def work() -> Mapping[str, Outcome]:
        name = "benchmarks " + ", ".join(dict.fromkeys(job.benchmark.name for job in jobs))
        tallies = run_pass(name, items, read, stages, targets, config.max_failure_rate)
        return {key: Outcome(tally) for key, tally in tallies.items()}

    plans = [plan for job in jobs for plan in ((job.sampling, job.judging) if grading else (job.sampling,))]
    needs = [placement.engine(config)] + ([placement.judge(config)] if grading else [])
    return {done.ref.key: done for done in run.carry_out(plans, work, needs)}


def _grade_target(job: Job) -> Target:
    return Target(job.judging.ref, Grade, job.key, "grade", "judge")


def _graded(run: Run, jobs: Sequence[Job], dataset: ray.data.Dataset) -> ray.data.Dataset:
    """The operator that asks the judge about sampled answers."""
    config = run.config
    return dataset.map_batches_internal(
        Guarded,
        fn_constructor_args=(
            files.join(run.store.in_flight_uri, "judged"),  # the same parts are sampled at the same time
            GradeActor,
            config.judge.chat,
            config.images,
            run.services,
            {job.key: job.benchmark.name for job in jobs},
        ),
        batch_format="pyarrow",
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=config.judge.replicas),
        **chat_options(config.judge.chat, config.judge.replicas),
        **placement.role_options(config, "judge"),
    )


def _grade_again(run: Run, jobs: Sequence[Job], rollouts: Mapping[str, Done]) -> dict[str, Done]:
    """Grade answers that were sampled earlier."""
    by_key = {job.key: job for job in jobs}
    schema = pa.schema(
        [
            pa.field("prompt", struct_of(Prompt)),
            pa.field("rollout", struct_of(Rollout)),
            pa.field("error", struct_of(ErrorRow)),
        ]
    )

    def read(key: str, part: str) -> Iterable[pa.Table]:
        sampled = read_part(rollouts[key].ref.data_uri, part)
        prompts = read_part(by_key[key].prompts.ref.data_uri, part)
        if sampled is None or prompts is None:
            return
        by_id = {row["prompt_id"]: row for row in prompts.to_pylist()}
        rows = [{"prompt": by_id[row["prompt_id"]], "rollout": row, "error": None} for row in sampled.to_pylist()]
        yield labelled(pa.Table.from_pylist(rows, schema=schema), key, part)

    def work() -> Mapping[str, Outcome]:
        items = [
            WorkItem(key, part, count)
            for key in by_key
            for part, count in part_rows(rollouts[key].ref.data_uri).items()
        ]
        targets = [_grade_target(job) for job in jobs]
        limit = run.config.max_failure_rate
        tallies = run_pass("judging", items, read, lambda dataset: _graded(run, jobs, dataset), targets, limit)
        return {key: Outcome(tally) for key, tally in tallies.items()}

    needs = [placement.judge(run.config)]
    return {done.ref.key: done for done in run.carry_out([job.judging for job in jobs], work, needs)}
