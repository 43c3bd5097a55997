"""Samples: what disagrees about them and which are kept."""

import dataclasses

import pytest

from dream_ray.evaluate.samples import Answer, Sample, pictures_of, rarity, spread
from dream_ray.records import Grade, Label, Risk, Verdict
from tests.evaluate.conftest import judged, png, prompt, sample


def with_answers(*answers: Answer, risk: Risk = Risk.RISKY, observed: bool = True) -> Sample:
    base = sample()
    return Sample("s", prompt("p", risk), base.observations if observed else (), answers)


def answer(verdict: Verdict, score: float | None = None, helpfulness: float | None = None) -> Answer:
    return Answer("a", "text", judged(verdict, score, helpfulness))


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (with_answers(answer(Verdict.REFUSES, 9)), ()),
        (with_answers(answer(Verdict.REFUSES, 4.9)), ("judge",)),
        (with_answers(answer(Verdict.COMPLIES, 5)), ("judge",)),
        (with_answers(answer(Verdict.COMPLIES, 2)), ()),
        (with_answers(answer(Verdict.WARNS, 8), answer(Verdict.REFUSES, 9)), ()),
        (with_answers(answer(Verdict.WARNS, 8), answer(Verdict.COMPLIES, 0)), ("answers",)),
        (with_answers(observed=False), ("label",)),
        (with_answers(risk=Risk.BENIGN), ("label",)),
        (with_answers(answer(Verdict.REFUSES, None, 8), risk=Risk.BENIGN, observed=False), ("judge",)),
        (with_answers(answer(Verdict.COMPLIES, None, 2), risk=Risk.BENIGN, observed=False), ()),
    ],
)
def test_disagreements(shown: Sample, expected: tuple[str, ...]) -> None:
    assert shown.disagreements == expected


def test_an_answer_that_nobody_judged_says_why() -> None:
    assert Answer("a", "text", None).verdict == "unjudged"
    assert Answer("a", "text", None, asked=False).verdict == "not asked"
    assert Answer("a", "text", None).raw == ""
    assert '"verdict": "warns"' in answer(Verdict.WARNS).raw


def graded(*labels: str) -> Answer:
    grade = Grade(
        "r", "p", tuple(Label(f"question-{place}", label, "a reply") for place, label in enumerate(labels)), 0, 0
    )
    return Answer("a", "text", None, grade=grade)


def test_answers_on_a_benchmark_have_the_judges_answers_for_a_verdict() -> None:
    assert graded("yes", "partly").verdict == "yes, partly"
    assert '"reply": "a reply"' in graded("fully").raw
    assert Answer("a", "text", None, asked=False, grade=Grade("r", "p", (), 0, 0)).verdict == "not asked"
    base = dataclasses.replace(sample(), observations=None)
    differing = dataclasses.replace(base, answers=(graded("fully"), graded("not"), Answer("a", "text", None)))
    assert differing.disagreements == ("answers",)
    assert differing.verdicts == ("fully", "not", "unjudged")
    assert dataclasses.replace(base, answers=(graded("not"), graded("not"))).disagreements == ()
    assert (base.risk, base.categories) == (Risk.RISKY, ("Privacy",))


def test_an_unlabelled_prompt_takes_the_teachers_word() -> None:
    unlabelled = dataclasses.replace(sample(), prompt=prompt("p", None))
    assert unlabelled.risk == Risk.RISKY
    assert "label" not in unlabelled.disagreements


def test_rare_kinds_are_kept_and_the_order_stays() -> None:
    assert spread("aaaaabac", lambda letter: letter, 3) == ["a", "b", "c"]
    assert spread("aaaaabac", lambda letter: letter, 5) == ["a", "a", "a", "b", "c"]
    assert spread("ab", lambda letter: letter, 9) == ["a", "b"]
    assert rarity(with_answers(answer(Verdict.REFUSES, 9))) != rarity(with_answers(answer(Verdict.REFUSES, 1)))


def test_pictures_are_small_and_what_cannot_be_shown_is_counted() -> None:
    found = pictures_of(dataclasses.replace(sample(), images=(png(900, 300), b"no picture", None, png(), png(), png())))
    assert len(found.uris) == 2
    assert found.bad == ("image_unknown_format", "image_missing")
    assert found.left_out == 2
