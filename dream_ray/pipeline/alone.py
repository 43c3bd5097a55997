"""One stage of the loop alone, with whatever stands before it: what the entry points in jobs/ submit.

Contract: each function composes the stages of driver.py up to its own, stops there and returns its finished stage. Stages are
found by fingerprint, so what is done is not done again, and the whole loop later takes over what was made here. For a
round after the first the rounds before it are finished first, for they decide which policy it starts from.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from dream_ray.pipeline import learning_stages
from dream_ray.pipeline.data_stages import demonstrate, ingest
from dream_ray.pipeline.data_stages import disentangle as observe
from dream_ray.pipeline.driver import align
from dream_ray.pipeline.plans import rollout_job
from dream_ray.pipeline.run import Done, Run
from dream_ray.pipeline.sampling_stages import Sampled, sample
from dream_ray.train.policy import Policy


@dataclass(frozen=True)
class _Start:
    """What a round starts from: `standing` is the policy and `trained` the stage that made it."""

    prompts: Done
    observed: Done
    trained: Done
    standing: Policy
    initial: Policy


def disentangle(run: Run) -> Done:
    """Ingest, then the observations of every prompt."""
    return observe(run, ingest(run))


def sft(run: Run) -> Done:
    """Up to policy 0."""
    return _policy_0(run).trained


def rollout(run: Run, number: int, scorer_url: Callable[[], str]) -> Sampled:
    """Up to the rollouts of a round and their judgements, which come from the same pass."""
    return _sample(run, number, _start(run, number, scorer_url), scorer_url)


def dpo(run: Run, number: int, scorer_url: Callable[[], str]) -> Done:
    """Up to policy `number`; it is not evaluated."""
    start = _start(run, number, scorer_url)
    sampled = _sample(run, number, start, scorer_url)
    pairs = learning_stages.pair(run, number, start.observed, sampled.rollouts, sampled.judgements)
    return learning_stages.dpo(run, number, start.prompts, pairs, start.trained, start.standing, start.initial)[0]


def _policy_0(run: Run) -> _Start:
    prompts = ingest(run)
    observed = observe(run, prompts)
    trained, initial = learning_stages.sft(run, prompts, demonstrate(run, prompts, observed))
    return _Start(prompts, observed, trained, initial, initial)


def _start(run: Run, number: int, scorer_url: Callable[[], str]) -> _Start:
    """What round `number` starts from, after the rounds before it."""
    start = _policy_0(run)
    if number == 1:
        return start
    # The loop itself decides which policy stands after the rounds before this one.
    before = align(run, scorer_url, rounds=number - 1)
    return replace(start, trained=before.trained, standing=before.standing)


def _sample(run: Run, number: int, start: _Start, scorer_url: Callable[[], str]) -> Sampled:
    job = rollout_job(run.config, number, start.standing, start.trained.ref)
    return sample(run, [job], start.prompts, start.observed, scorer_url)[job.key]
