"""The stages that train, and the pairs that DPO reads: sft, pair, dpo.

Contract: as in data_stages.py. Training itself is in train/; here are its inputs, its place in the run and its log as
`TrainingStep` rows. A stage's adapter lies in <stage>/adapter, its model in <stage>/model where all weights are trained.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa
import ray

from dream_ray import files
from dream_ray.config import PairConfig, TrainConfig
from dream_ray.feedback.pairs import Outline, balance_lengths, balance_shifts, make_pairs
from dream_ray.feedback.rubric import risk_of
from dream_ray.outcomes import outcome_table
from dream_ray.pipeline import placement
from dream_ray.pipeline.data_stages import labelled, training_items
from dream_ray.pipeline.gpu_time import GpuSeconds
from dream_ray.pipeline.parts import (
    StageFailed,
    Tally,
    Target,
    leave_out,
    part_rows,
    read_part,
    read_parts,
    run_pass,
    write_part,
)
from dream_ray.pipeline.plans import Plan, in_splits
from dream_ray.pipeline.run import Done, Outcome, Run
from dream_ray.pipeline.store import StageRef, parquet_files
from dream_ray.records import (
    Disentanglement,
    Judgement,
    PreferencePair,
    Prompt,
    Risk,
    Rollout,
    Split,
    TrainingStep,
    from_table,
    to_table,
)
from dream_ray.train.broken import TrainingBroken
from dream_ray.train.dpo import train_dpo
from dream_ray.train.policy import Policy, merge_adapter
from dream_ray.train.ray_adapter import TrainResult
from dream_ray.train.sft import train_sft

log = logging.getLogger(__name__)


def sft(run: Run, prompts: Done, demonstrations: Done) -> tuple[Done, Policy]:
    """Risk-aware fine-tuning: policy 0."""
    config = run.config
    plan = run.plans.sft(prompts.ref, demonstrations.ref)

    def train() -> TrainResult:
        return train_sft(
            prompts=_training_parts(prompts),
            demonstrations=parquet_files(demonstrations.ref.data_uri),
            student=config.student,
            lora=config.lora,
            sft=config.sft,
            images=config.images,
            seed=config.seed,
            output=plan.ref.uri,
            max_failure_rate=config.max_failure_rate,
            cluster=config.cluster,
        )

    done = run.done(plan)
    if done is None:
        done = _train(run, plan, train, config.sft)
    if config.lora is None:
        return done, Policy("policy-0", files.join(done.ref.uri, "model"), None)
    return done, Policy("policy-0", config.student.model, files.join(done.ref.uri, "adapter"))


def pair(run: Run, number: int, observed: Done, rollouts: Done, judgements: Done) -> Done:
    """The preference pairs of a round, lengths balanced over the set."""
    config = run.config
    plan = run.plans.pair(number, observed.ref, rollouts.ref, judgements.ref)
    key = plan.ref.key
    if done := run.done(plan):
        return done

    def read(job: str, part: str) -> Iterable[pa.Table]:
        observations, sampled, judged = (
            read_part(done.ref.data_uri, part) for done in (observed, rollouts, judgements)
        )
        if observations is None or sampled is None or judged is None:
            return
        answers, views = (_by_prompt(kind, table) for kind, table in ((Rollout, sampled), (Judgement, judged)))
        found = [
            made
            for row in from_table(Disentanglement, observations)
            if row.prompt_id in answers
            for made in make_pairs(
                risk_of(row.observations), answers[row.prompt_id], views.get(row.prompt_id, []), config.pairs
            )
        ]
        if found:
            yield labelled(outcome_table(PreferencePair, found), job, part)

    target = Target(plan.ref, PreferencePair, key, "record", "pair")

    def work() -> Mapping[str, Outcome]:
        items = training_items(key, judgements)
        tally = run_pass(key, items, read, lambda dataset: dataset, [target], config.max_failure_rate)[key]
        by_shift, by_length = ray.get(_balance_pairs.remote(plan.ref.data_uri, config.pairs))
        tally.rows_out -= by_shift + by_length
        if not tally.rows_out:
            raise StageFailed(
                f"{key}: no pair is left of {judgements.manifest.rows_out} judged answers: {by_shift + by_length} were left "
                "out to balance refusals and lengths, and elsewhere no prompt has two answers whose rewards differ by "
                f"pairs.margin = {config.pairs.margin}. Raise rollout.k or rollout.temperature for more contrast, or lower "
                "pairs.margin."
            )
        return {key: Outcome(tally, {"left_out_by_shift": by_shift, "left_out_by_length": by_length})}

    return run.carry_out([plan], work)[0]


def _by_prompt(kind: type[Any], table: pa.Table) -> dict[str, list[Any]]:
    """The records of a part, grouped by prompt."""
    groups: dict[str, list[Any]] = defaultdict(list)
    record: Any
    for record in from_table(kind, table):
        groups[record.prompt_id].append(record)
    return groups


@ray.remote(num_cpus=1)
def _balance_pairs(folder_uri: str, settings: PairConfig) -> tuple[int, int]:
    """Leave out pairs until shifts and then lengths are balanced over all parts; how many were left out for each.

    Holds an outline of each pair, some hundred bytes, and no texts.
    """
    outlines = [
        Outline.of(pair) for _, (table,) in read_parts(folder_uri) for pair in from_table(PreferencePair, table)
    ]
    kept, by_shift = balance_shifts(outlines, settings.max_shift_ratio)
    _, by_length = balance_lengths(kept, settings.max_length_ratio)
    if by_shift or by_length:
        leave_out(folder_uri, "pair_id", {pair.pair_id for pair in (*by_shift, *by_length)})
    return len(by_shift), len(by_length)


def dpo(
    run: Run, number: int, prompts: Done, pairs: Done, standing: Done, start: Policy, initial: Policy
) -> tuple[Done, Policy]:
    """One round of preference optimisation from the standing policy: policy `number`."""
    config = run.config
    plan = run.plans.dpo(number, prompts.ref, pairs.ref, standing.ref, start.name)
    name = f"policy-{number}"
    merged = files.join(plan.ref.uri, "merged")
    previous = config.dpo.reference == "previous"
    fresh_adapter = previous and config.lora is not None
    done = run.done(plan)
    if done is None:

        def train() -> TrainResult:
            # The reference of a new adapter is the model under it, so the standing policy is merged first.
            base = Policy(start.name, merge_adapter(start, merged), None) if fresh_adapter else start
            return train_dpo(
                prompts=_training_parts(prompts),
                pairs=parquet_files(pairs.ref.data_uri),
                start=base,
                reference=base if previous else initial,
                student=config.student,
                lora=config.lora,
                dpo=config.dpo,
                images=config.images,
                seed=config.seed + number,
                output=plan.ref.uri,
                stored=files.join(pairs.ref.uri, "reference"),
                probes=_benign_probes(prompts, config.dpo.stop.probes) if config.dpo.stop.asks else (),
                max_failure_rate=config.max_failure_rate,
                cluster=config.cluster,
            )

        done = _train(run, plan, train, config.dpo)
    if config.lora is None:
        return done, Policy(name, files.join(done.ref.uri, "model"), None)
    return done, Policy(name, merged if fresh_adapter else start.model, files.join(done.ref.uri, "adapter"))


def _train(run: Run, plan: Plan, train: Callable[[], TrainResult], settings: TrainConfig) -> Done:
    """Carry out a training, alone on the machines where the scorer would be in its way."""
    if not run.placement.judge_while_training:
        run.release_scorer()
    workers = placement.training(run.config, settings)
    key = plan.ref.key
    return run.carry_out([plan], lambda: {key: _logged(plan.ref, _trained(key, train))}, workers)[0]


def _training_parts(prompts: Done) -> list[str]:
    """The files of the training prompts."""
    return [files.join(prompts.ref.data_uri, f"{item.part}.parquet") for item in training_items("", prompts)]


def _benign_probes(prompts: Done, count: int) -> list[Prompt]:
    """The first prompts of the development split that their source labels as benign."""
    found: list[Prompt] = []
    for part in part_rows(prompts.ref.data_uri):
        if len(found) < count and in_splits(part, [Split.DEV]):
            table = read_part(prompts.ref.data_uri, part)
            found += [row for row in from_table(Prompt, table) if row.risk == Risk.BENIGN] if table is not None else []
    return found[:count]


def _trained(key: str, train: Callable[[], TrainResult]) -> TrainResult:
    """What a training gives; where a worker's storage failed, that error and not Ray Train's around it."""
    from ray.train import TrainingFailedError, WorkerGroupError

    try:
        return train()
    except TrainingBroken as error:
        raise StageFailed(f"{key}: {error}") from error
    except TrainingFailedError as error:
        failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
        for cause in filter(files.is_of_storage, failures):
            raise cause from error
        raise


def _logged(ref: StageRef, result: TrainResult) -> Outcome:
    """The training log as the stage's rows; in the manifest, what was trained on and why it ended early."""
    steps = [
        TrainingStep(int(entry["step"]), float(entry["epoch"]), name, float(value))
        for entry in result.history
        for name, value in sorted(entry.items())
        if name not in ("step", "epoch")
    ]
    write_part(ref.data_uri, "log", to_table(TrainingStep, steps))
    extra: dict[str, Any] = {
        "steps": result.steps,
        "examples": result.examples,
        "final_loss": result.loss,
        "tokens": result.tokens,
        "stopped": result.stopped,
        "skipped": dict(result.skipped),
    }
    if result.skipped:
        log.warning("%s: rows left out: %s", ref.key, dict(result.skipped))
    return Outcome(Tally(rows_out=len(steps)), extra, GpuSeconds(result.gpu_held_s, result.gpu_idle_s))
