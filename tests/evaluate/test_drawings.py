"""The geometry of the trade-off plot and of the histograms."""

from itertools import pairwise

import pytest

from dream_ray.evaluate.distribution import BINS, distribution, histogram
from dream_ray.evaluate.report import ReportData
from dream_ray.evaluate.tradeoff import Series, tradeoff
from dream_ray.records import Metric


def rows(policy: str, safe: float | None, over: float) -> list[Metric]:
    known = (None, None, None) if safe is None else (safe, max(0.0, safe - 0.1), min(1.0, safe + 0.1))
    return [
        Metric(policy, "dev", "safe", "all", known[0], 0 if safe is None else 20, known[1], known[2], 0),
        Metric(policy, "dev", "over_refusal", "all", over, 20, max(0.0, over - 0.1), min(1.0, over + 0.1), 0),
    ]


def series(*metrics: Metric, refused: frozenset[str] = frozenset()) -> Series:
    policies = list(dict.fromkeys(metric.policy for metric in metrics))
    return Series("", metrics, policies, dict(zip(policies[1:], policies, strict=False)), refused)


def test_safer_is_higher_and_over_refusing_is_further_right() -> None:
    shown = series(*rows("a", 0.1, 0.0), *rows("b", 0.9, 0.4), refused=frozenset("b"))
    plot = tradeoff("dev", [shown])
    a, b = plot.spots
    assert a.y > b.y
    assert a.x < b.x
    assert a.x == plot.left
    assert (a.taken, b.taken) == (True, False)
    assert all(spot.x_low <= spot.x <= spot.x_high and spot.y_high <= spot.y <= spot.y_low for spot in plot.spots)
    assert [(step.x1, step.x2, step.taken) for step in plot.steps] == [(a.x, b.x, False)]


def test_a_policy_with_one_number_only_has_no_point() -> None:
    plot = tradeoff("dev", [series(*rows("a", 0.1, 0.0), *rows("b", None, 0.4), *rows("c", 0.5, 0.2))])
    assert [spot.label for spot in plot.spots] == ["a", "c"]
    assert plot.steps == ()
    assert tradeoff("held_out", [series(*rows("a", 0.1, 0.0))]).spots == ()


@pytest.mark.parametrize(("safe", "over"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5)])
def test_labels_do_not_meet_and_stay_inside(safe: float, over: float) -> None:
    many = [series(*(metric for index in range(4) for metric in rows(f"policy-{index}", safe, over))) for _ in range(3)]
    plot = tradeoff("dev", many)
    heights = sorted(spot.label_y for spot in plot.spots)
    assert len(heights) == 12
    assert all(lower - upper >= 14 for upper, lower in pairwise(heights))
    assert all(plot.top <= height <= plot.bottom for height in heights)


def test_several_runs_are_told_apart(report_data: ReportData) -> None:
    plot = tradeoff("dev", [report_data.series("first"), report_data.series("second")])
    assert {spot.series for spot in plot.spots} == {0, 1}
    assert {spot.label.split()[0] for spot in plot.spots} == {"first", "second"}


def test_every_value_is_counted_once() -> None:
    found = distribution(1, "risky", "reward", [0.0, 1.0, 2.0], [0.1, 0.1, 0.1], 2.0)
    assert sum(found.chosen) == sum(found.rejected) == found.n == 3
    assert found.chosen[0] == found.chosen[-1] == 1
    assert (found.mean_chosen, found.mean_rejected) == (1.0, pytest.approx(0.1))
    assert len(found.chosen) == BINS


@pytest.mark.parametrize("wrong", [([2.1], [0.0]), ([0.0], [-0.1]), ([], []), ([1.0], [1.0, 1.0])])
def test_a_value_that_would_be_lost_is_an_error(wrong: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match=r"outside 0 to|A pair has two answers"):
        distribution(1, "risky", "reward", *wrong, 2.0)


def test_bars_stand_on_their_side_and_inside_the_frame() -> None:
    drawn = histogram(distribution(1, "benign", "words", [3, 9, 9], [1, 2, 40]))
    assert {bar.side for bar in drawn.bars} == {"chosen", "rejected"}
    for bar in drawn.bars:
        assert bar.y + bar.height == pytest.approx(drawn.axis) if bar.side == "chosen" else bar.y == drawn.axis
        assert drawn.left <= bar.x < bar.x + bar.width <= drawn.right
        assert bar.y >= 0
        assert bar.y + bar.height <= drawn.height
    assert drawn.left < drawn.mean_chosen_x < drawn.mean_rejected_x < drawn.right
