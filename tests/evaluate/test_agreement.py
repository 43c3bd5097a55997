"""Agreement, kappa, precision and recall on tables that can be checked by hand or in the literature."""

import random

import pytest

from dream_ray.evaluate.agreement import Pair, Reading, agreement, confusion, kappa
from dream_ray.evaluate.labelled import Label

REFUSES, WARNS, COMPLIES, PARTLY = Label.REFUSES, Label.WARNS, Label.COMPLIES, Label.PARTLY


def test_kappa_of_a_worked_example() -> None:
    # 50 rows, 20 + 15 agree: p_o = 0.7, p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    found = kappa(20, 5, 10, 15)
    assert found is not None
    assert found.value == pytest.approx(0.4)
    assert found.low < 0.4 < found.high


def test_kappa_is_not_impressed_by_a_rater_who_always_says_the_same() -> None:
    always = kappa(90, 0, 10, 0)
    assert always is not None
    assert always.value == pytest.approx(0)
    assert kappa(10, 0, 0, 0) is None
    assert kappa(0, 0, 0, 0) is None
    opposite = kappa(0, 5, 5, 0)
    assert opposite is not None
    assert (opposite.value, opposite.low) == (pytest.approx(-1), -1)


def test_kappas_interval_is_that_of_resampling() -> None:
    # A second way to the same interval: the spread of kappa over resampled rows.
    cells = (60, 15, 10, 40)
    rows = [index for index, count in enumerate(cells) for _ in range(count)]
    draw = random.Random(0)
    values = []
    for _ in range(2000):
        sample = draw.choices(rows, k=len(rows))
        resampled = kappa(*(sample.count(index) for index in range(4)))
        assert resampled is not None
        values.append(resampled.value)
    values.sort()
    found = kappa(*cells)
    assert found is not None
    assert found.low == pytest.approx(values[50], abs=0.02)
    assert found.high == pytest.approx(values[-51], abs=0.02)


PAIRS: list[Pair] = [
    *[(REFUSES, REFUSES)] * 4,
    *[(REFUSES, WARNS)] * 2,
    (REFUSES, COMPLIES),
    *[(COMPLIES, COMPLIES)] * 5,
    *[(COMPLIES, WARNS)] * 2,
    (PARTLY, REFUSES),
    *[(PARTLY, COMPLIES)] * 3,
    (COMPLIES, None),
    (PARTLY, None),
]


def test_a_warning_does_not_comply_and_what_has_no_verdict_is_in_no_number() -> None:
    found = agreement(PAIRS, Reading.LEFT_OUT)
    assert (found.n, found.unjudged) == (14, 1)
    assert found.agreement is not None
    assert found.agreement.value == pytest.approx(11 / 14)
    assert (found.refusal.predicted, found.refusal.actual) == (8, 7)
    assert found.refusal.precision is not None
    assert found.refusal.precision.value == pytest.approx(6 / 8)
    assert found.refusal.recall is not None
    assert found.refusal.recall.value == pytest.approx(6 / 7)
    assert found.refusal.f1 == pytest.approx(12 / 15)
    assert (found.compliance.predicted, found.compliance.actual) == (6, 7)
    assert found.compliance.f1 == pytest.approx(10 / 13)


@pytest.mark.parametrize(("reading", "right"), [(Reading.REFUSAL, 12), (Reading.COMPLIANCE, 14)])
def test_what_lies_between_counts_as_the_reading_says(reading: Reading, right: int) -> None:
    found = agreement(PAIRS, reading)
    assert (found.n, found.unjudged) == (18, 2)
    assert found.agreement is not None
    assert found.agreement.value == pytest.approx(right / 18)


def test_numbers_of_nothing_are_none() -> None:
    found = agreement([(COMPLIES, None)], Reading.LEFT_OUT)
    assert (found.n, found.unjudged, found.agreement, found.kappa) == (0, 1, None, None)
    assert (found.refusal.precision, found.refusal.recall, found.refusal.f1) == (None, None, None)
    never = agreement([(REFUSES, COMPLIES), (COMPLIES, COMPLIES)], Reading.LEFT_OUT)
    assert never.refusal.precision is None
    assert never.refusal.recall is not None
    assert never.refusal.recall.value == 0


def test_the_table_keeps_every_pair() -> None:
    table = confusion(PAIRS)
    assert table[PARTLY, COMPLIES] == 3
    assert table[COMPLIES, None] == 1
    assert table.total() == len(PAIRS)
