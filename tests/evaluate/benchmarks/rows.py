"""Prompts, answers and grades of made-up benchmark rows."""

from dream_ray.evaluate.benchmarks.protocol import Answer, Benchmark
from dream_ray.records import Grade, Label, Metric, Prompt, Risk, Rollout, Split, Turn, make_prompt


def row(key: str, risk: Risk | None = Risk.RISKY, text: str = "What is on the sign?", **fields: object) -> Prompt:
    """A held-out prompt without a picture."""
    turns = [Turn("user", text, ())]
    return make_prompt(source="made", source_id=key, turns=turns, split=Split.HELD_OUT, risk=risk, **fields)  # type: ignore[arg-type]


def answered(benchmark: Benchmark, prompts: list[Prompt], texts: dict[str, list[str]]) -> list[Rollout]:
    """The answers to prompts, by their keys."""
    return [
        Rollout(f"rollout-{prompt.source_id}-{k}", prompt.prompt_id, "base", k, k, text, "stop", 5, 5)
        for prompt in prompts
        for k, text in enumerate(texts.get(prompt.source_id, []))
    ]


def graded(rollout: Rollout, **labels: str) -> Grade:
    """A grade with the given labels by task."""
    named = tuple(Label(task, answer, answer) for task, answer in labels.items())
    return Grade(rollout.rollout_id, rollout.prompt_id, named, 0, 0)


def answer(text: str | None = "Yes.", **labels: str) -> Answer:
    """An answer with the given labels, unjudged where there are none."""
    return Answer(text, labels or None)


def number(metrics: list[Metric], name: str, label: str = "all") -> Metric:
    """The one metric of a name."""
    (found,) = [metric for metric in metrics if (metric.name, metric.slice) == (name, label)]
    return found
