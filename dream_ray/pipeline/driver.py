"""The loop: ingest, disentangle, demonstrate, sft, then rounds of rollout, judge, pair, dpo, evaluate.

Contract: `align` only composes stages and decides, after each round, which policy stands. Every stage returns at once where
it is done, so `align` on the same run directory goes on where an earlier attempt ended. It holds metrics, never rows.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from dream_ray.evaluate.metrics import accept_round
from dream_ray.evaluate.paired import Comparison
from dream_ray.evaluate.report import RoundRow
from dream_ray.pipeline.benchmarks import measure, prepare
from dream_ray.pipeline.data_stages import demonstrate, disentangle, ingest
from dream_ray.pipeline.learning_stages import dpo, pair, sft
from dream_ray.pipeline.nodes import require_room
from dream_ray.pipeline.plans import answers_job, rollout_job
from dream_ray.pipeline.run import Done, Run
from dream_ray.pipeline.sampling_stages import evaluate, sample
from dream_ray.records import Metric
from dream_ray.train.policy import Policy

log = logging.getLogger(__name__)


@dataclass
class Result:
    """What a run found: every policy and its metrics in the order of the run, the rounds, and the policy that stands.

    `trained` is the stage that made the policy that stands. `comparisons` say how policies changed from the base model on
    the benchmarks.
    """

    standing: Policy
    trained: Done
    policies: dict[str, Policy] = field(default_factory=dict)
    metrics: dict[str, list[Metric]] = field(default_factory=dict)
    rounds: list[RoundRow] = field(default_factory=list)
    comparisons: tuple[Comparison, ...] = ()


def align(run: Run, scorer_url: Callable[[], str], rounds: int | None = None) -> Result:
    """Run every stage that is not done. `scorer_url` gives the scorer's address, starting it where it does not run yet.

    `rounds` are all of the config's unless given; then it stops after so many, before the benchmarks.
    """
    config = run.config
    whole = rounds is None
    rounds = config.rounds if rounds is None else rounds
    if whole:
        require_room(config)
    prompts = ingest(run)
    prepare(run, prompts)
    observed = disentangle(run, prompts)
    demonstrations = demonstrate(run, prompts, observed)
    trained_0, initial = sft(run, prompts, demonstrations)
    base = Policy("base", config.student.model, None)
    result = Result(initial, trained_0)

    # The base model, policy 0 and its first rollouts share an engine: they differ by the adapter only.
    jobs = [answers_job(config, base, None), answers_job(config, initial, trained_0.ref)]
    jobs += [rollout_job(config, 1, initial, trained_0.ref)] if rounds else []
    sampled = sample(run, jobs, prompts, observed, scorer_url)
    for policy in (base, initial):
        result.policies[policy.name] = policy
        result.metrics[policy.name] = evaluate(run, policy, prompts, sampled[policy.name])[1]

    taken = [result.metrics[initial.name]]
    for number in range(1, rounds + 1):
        key = f"round-{number}"
        if key not in sampled:
            job = rollout_job(config, number, result.standing, result.trained.ref)
            sampled |= sample(run, [job], prompts, observed, scorer_url)
        pairs = pair(run, number, observed, sampled[key].rollouts, sampled[key].judgements)
        trained, candidate = dpo(run, number, prompts, pairs, result.trained, result.standing, initial)

        # Expecting that the round is taken, the next one's rollouts are drawn while the engine is there to evaluate it.
        jobs = [answers_job(config, candidate, trained.ref)]
        jobs += [rollout_job(config, number + 1, candidate, trained.ref)] if number < rounds else []
        sampled |= sample(run, jobs, prompts, observed, scorer_url)
        result.policies[candidate.name] = candidate
        result.metrics[candidate.name] = evaluate(run, candidate, prompts, sampled[candidate.name])[1]

        found = result.metrics[candidate.name]
        decision = accept_round(taken, found, config.max_failure_rate, config.evaluate.max_over_refusal)
        result.rounds.append(RoundRow(number, result.standing.name, candidate.name, decision.taken, decision.reason))
        log.info("%s: %s", key, decision.reason)
        if decision.taken:
            result.standing, result.trained = candidate, trained
            taken.append(result.metrics[candidate.name])
        else:
            sampled.pop(f"round-{number + 1}", None)  # drawn from the refused policy

    if whole and config.evaluate.benchmarks:
        run.release_scorer()  # benchmarks are graded by actors of their own
        measured = measure(run, list(dict.fromkeys((base, initial, result.standing))), config.evaluate.benchmarks)
        for metric in measured.metrics:
            result.metrics[metric.policy].append(metric)
        result.comparisons = measured.comparisons
    return result
