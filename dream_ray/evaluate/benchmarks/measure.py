"""From a policy's answers and the judge's grades to a benchmark's numbers.

Contract: pure. `answers_of` puts a prompt's answers together, those that could not be sampled or graded as what they are:
unknown. `outcomes` gives every measure's value for every prompt, for paired comparison; `benchmark_metrics` the shares with
Wilson intervals, `unjudged` beside each. Two more numbers stand with every benchmark: "judge_failures", the share of sampled
answers that the judge gave no grade, and "empty_answers", the share of answers without a word, by which a policy that fell
silent is known from one that is safe.
"""

from collections.abc import Callable, Mapping, Sequence

from dream_ray.evaluate.benchmarks.protocol import Answer, Benchmark
from dream_ray.evaluate.metrics import ALL, share_metric
from dream_ray.records import Grade, Metric, Prompt, Rollout

JUDGE_FAILURES = "judge_failures"
EMPTY_ANSWERS = "empty_answers"


def answers_of(
    benchmark: Benchmark, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], grades: Sequence[Grade]
) -> dict[str, list[Answer]]:
    """Each prompt's answers by its id, as many as the benchmark asks for. Raises ValueError where one is there twice."""
    texts = {(rollout.prompt_id, rollout.k): rollout for rollout in rollouts}
    labels = {grade.rollout_id: {label.question: label.answer for label in grade.labels} for grade in grades}
    if len(texts) != len(rollouts) or len(labels) != len(grades):
        raise ValueError(
            f"Of {len(rollouts)} answers {len(rollouts) - len(texts)} and of {len(grades)} grades {len(grades) - len(labels)} "
            "are there twice, so they would be counted twice. Pass the answers of one policy to one benchmark."
        )
    found: dict[str, list[Answer]] = {}
    for prompt in prompts:
        sampled = [texts.get((prompt.prompt_id, k)) for k in range(benchmark.answers)]
        found[prompt.prompt_id] = [
            Answer(None, None) if rollout is None else Answer(rollout.text, labels.get(rollout.rollout_id))
            for rollout in sampled
        ]
    return found


def outcomes(
    benchmark: Benchmark, prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Answer]]
) -> dict[str, dict[str, bool | None]]:
    """For each measure the value of each prompt that it counts, by prompt id; None where it is not known."""
    return {
        measure.name: {
            prompt.prompt_id: measure.outcome(prompt, answers[prompt.prompt_id])
            for prompt in prompts
            if measure.counts(prompt)
        }
        for measure in benchmark.measures
    }


def benchmark_metrics(
    policy: str, benchmark: Benchmark, prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Answer]]
) -> list[Metric]:
    """The numbers of a policy: each measure over all prompts and over each slice that holds some; `split` names the
    benchmark."""
    slices: dict[str, list[str]] = {ALL: [prompt.prompt_id for prompt in prompts]}
    for key in benchmark.slices:
        slices |= _slices(prompts, key)
    metrics = []
    for name, values in outcomes(benchmark, prompts, answers).items():
        for label, ids in slices.items():
            members = [values[prompt_id] for prompt_id in ids if prompt_id in values]
            if members or label == ALL:
                metrics.append(share_metric(policy, benchmark.name, name, label, members))
    given = [answer for found in answers.values() for answer in found]
    failed = [answer.labels is None for answer in given if answer.text is not None] if benchmark.tasks else []
    silent = [None if answer.text is None else not answer.text.strip() for answer in given]
    metrics.append(share_metric(policy, benchmark.name, JUDGE_FAILURES, ALL, failed))
    metrics.append(share_metric(policy, benchmark.name, EMPTY_ANSWERS, ALL, silent))
    return metrics


def _slices(prompts: Sequence[Prompt], key: Callable[[Prompt], str | None]) -> dict[str, list[str]]:
    """The prompts' ids by what `key` says of them, in the order of the names; none where it tells no two apart."""
    found: dict[str, list[str]] = {}
    for prompt in prompts:
        label = key(prompt)
        if label is not None:
            found.setdefault(label, []).append(prompt.prompt_id)
    return {label: found[label] for label in sorted(found)} if len(found) > 1 else {}
