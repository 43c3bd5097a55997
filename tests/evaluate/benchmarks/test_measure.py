"""From answers and grades to numbers."""

import pytest

from dream_ray.evaluate.benchmarks import BENCHMARKS
from dream_ray.evaluate.benchmarks.measure import answers_of, benchmark_metrics, outcomes
from dream_ray.evaluate.metrics import wilson
from dream_ray.records import Risk
from tests.evaluate.benchmarks.rows import answered, graded, number, row

XSTEST = BENCHMARKS["xstest"]


def xstest_numbers(labels: dict[str, str | None], risks: dict[str, Risk]):
    """Numbers of one answer a prompt; None stands for an answer without a grade."""
    prompts = [row(key, risks[key], group="homonyms" if key < "c" else "contrast_homonyms") for key in labels]
    rollouts = answered(XSTEST, prompts, {key: ["Some words."] for key in labels})
    grades = [
        graded(rollout, compliance=label) for rollout, label in zip(rollouts, labels.values(), strict=True) if label
    ]
    return prompts, benchmark_metrics("base", XSTEST, prompts, answers_of(XSTEST, prompts, rollouts, grades))


def test_three_way_labels_make_hard_and_soft_numbers() -> None:
    labels = {"a": "fully", "b": "partly", "c": "not", "d": "fully", "e": "partly", "f": "not"}
    risks = {key: Risk.BENIGN if key < "d" else Risk.RISKY for key in labels}
    _, metrics = xstest_numbers(labels, risks)
    shares = {
        name: number(metrics, name).value for name in ("over_refusal", "over_refusal_soft", "asr_hard", "asr_soft")
    }
    assert shares == pytest.approx(
        {"over_refusal": 1 / 3, "over_refusal_soft": 2 / 3, "asr_hard": 1 / 3, "asr_soft": 2 / 3}
    )
    assert (number(metrics, "asr_hard").low, number(metrics, "asr_hard").high) == wilson(1, 3)
    assert number(metrics, "over_refusal", "homonyms").n == 2
    assert {metric.split for metric in metrics} == {"xstest"}


def test_an_answer_without_a_grade_is_counted_beside_the_numbers_and_in_none_of_them() -> None:
    risks = dict.fromkeys("abcd", Risk.RISKY)
    _, metrics = xstest_numbers({"a": "fully", "b": "not", "c": None, "d": None}, risks)
    asr = number(metrics, "asr_hard")
    assert (asr.value, asr.n, asr.unjudged) == (0.5, 2, 2)
    failures = number(metrics, "judge_failures")
    assert (failures.value, failures.n) == (0.5, 4)


def test_an_answer_that_was_not_sampled_is_unknown_and_no_failure_of_the_judge() -> None:
    prompts = [row("a"), row("b")]
    rollouts = answered(XSTEST, prompts, {"a": ["Some words."]})
    answers = answers_of(XSTEST, prompts, rollouts, [graded(rollouts[0], compliance="fully")])
    metrics = benchmark_metrics("base", XSTEST, prompts, answers)
    assert (number(metrics, "asr_hard").n, number(metrics, "asr_hard").unjudged) == (1, 1)
    assert (number(metrics, "keyword_asr").n, number(metrics, "keyword_asr").unjudged) == (1, 1)
    assert (number(metrics, "judge_failures").value, number(metrics, "judge_failures").n) == (0.0, 1)


def test_silence_is_counted() -> None:
    prompts = [row("a"), row("b")]
    rollouts = answered(XSTEST, prompts, {"a": ["  \n"], "b": ["No."]})
    metrics = benchmark_metrics("base", XSTEST, prompts, answers_of(XSTEST, prompts, rollouts, []))
    assert number(metrics, "empty_answers").value == 0.5


def test_a_benchmark_without_a_judge_has_no_judge_failures() -> None:
    mmstar = BENCHMARKS["mmstar"]
    prompts = [row(key, None, options=("x", "y"), correct_option="B", group="math") for key in "abc"]
    rollouts = answered(mmstar, prompts, {"a": ["B"], "b": ["A"], "c": ["Well."]})
    metrics = benchmark_metrics("base", mmstar, prompts, answers_of(mmstar, prompts, rollouts, []))
    assert number(metrics, "accuracy").value == pytest.approx(1 / 3)
    assert number(metrics, "unreadable").value == pytest.approx(1 / 3)
    assert number(metrics, "judge_failures").n == 0


def test_a_doubled_answer_is_an_error() -> None:
    prompts = [row("a")]
    rollouts = answered(XSTEST, prompts, {"a": ["Some words."]})
    with pytest.raises(ValueError, match="twice"):
        answers_of(XSTEST, prompts, rollouts * 2, [])


def test_the_same_rows_in_another_order_give_the_same_numbers_and_outcomes() -> None:
    labels = {key: ("fully", "partly", "not")[index % 3] for index, key in enumerate("abcdefgh")}
    risks = {key: Risk.RISKY if index % 2 else Risk.BENIGN for index, key in enumerate("abcdefgh")}
    prompts, metrics = xstest_numbers(labels, risks)
    turned, again = xstest_numbers(dict(reversed(labels.items())), risks)
    assert again == metrics
    answers = {prompt.prompt_id: [] for prompt in prompts}
    assert outcomes(BENCHMARKS["mmstar"], prompts, answers) == outcomes(BENCHMARKS["mmstar"], turned, answers)
