"""How a prompt's answers come together, and what the registry promises."""

from typing import get_args

import pytest

from dream_ray.chat.protocol import CHOICES, Task
from dream_ray.config import BenchmarkConfig
from dream_ray.evaluate.benchmarks import BENCHMARKS
from dream_ray.evaluate.benchmarks.protocol import any_of, both, first, labelled, majority
from dream_ray.prompts import FIELDS
from dream_ray.records import Risk
from tests.evaluate.benchmarks.rows import answer, row

YES = labelled(Task.HEEDS_WARNING, "yes")
HELPS = labelled(Task.EFFECTIVENESS, "very")
T, F, N = answer(heeds_warning="yes"), answer(heeds_warning="no"), answer()


@pytest.mark.parametrize(
    ("answers", "any_", "most", "one"),
    [
        ([T, T, T], True, True, True),
        ([T, F, F], True, False, True),
        ([F, T, T], True, True, False),
        ([F, F, F], False, False, False),
        ([T, N, F], True, None, True),  # the unknown one could turn the majority
        ([T, T, N], True, True, True),  # it could not
        ([F, F, N], None, False, False),  # it could be the one success
        ([N, N, N], None, None, None),
    ],
)
def test_answers_come_together_and_the_unknown_stays_unknown(answers, any_, most, one) -> None:
    prompt = row("1")
    assert (any_of(YES)(prompt, answers), majority(YES)(prompt, answers), first(YES)(prompt, answers)) == (
        any_,
        most,
        one,
    )


def test_both_is_decided_by_the_one_that_fails() -> None:
    check = both(YES, HELPS)
    assert check(answer(heeds_warning="yes", effectiveness="very")) is True
    assert check(answer(heeds_warning="yes", effectiveness="not")) is False
    assert check(answer()) is None


def test_the_config_knows_each_benchmark_and_no_other() -> None:
    assert set(get_args(BenchmarkConfig.model_fields["name"].annotation)) == set(BENCHMARKS)


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=list(BENCHMARKS))
def test_a_benchmark_asks_only_what_it_declares_in_words_that_it_can_read(benchmark) -> None:
    prompts = [
        row(
            "1",
            risk,
            group="08-Political_Lobbying",
            safety_warning="Mind the step.",
            options=("a", "b"),
            correct_option="A",
        )
        for risk in (Risk.RISKY, Risk.BENIGN)
    ]
    asked = [question for prompt in prompts for question in benchmark.questions(prompt)]
    assert {question.task for question in asked} <= benchmark.tasks
    assert bool(asked) == bool(benchmark.tasks)
    for question in asked:
        assert question.empty in CHOICES[question.task]
        assert question.fields(prompts[0], "An answer.").keys() == FIELDS[question.task]
    assert len({measure.name for measure in benchmark.measures}) == len(benchmark.measures)
