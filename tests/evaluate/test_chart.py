"""The curves' geometry."""

import pytest

from dream_ray.evaluate.chart import curve
from dream_ray.records import Metric

PARENTS = {"policy-0": "base", "policy-1": "policy-0", "policy-2": "policy-0"}
POLICIES = ["base", "policy-0", "policy-1", "policy-2"]


def metric(policy: str, name: str, value: float | None) -> Metric:
    low, high = (None, None) if value is None else (max(0.0, value - 0.1), min(1.0, value + 0.1))
    return Metric(policy, "dev", name, "all", value, 0 if value is None else 20, low, high, 0)


def metrics(safe: list[float | None], over: list[float | None]) -> list[Metric]:
    rows = [metric(policy, "safe", value) for policy, value in zip(POLICIES, safe, strict=True)]
    return rows + [metric(policy, "over_refusal", value) for policy, value in zip(POLICIES, over, strict=True)]


def test_higher_shares_stand_higher_and_whiskers_hold_their_points() -> None:
    drawn = curve(metrics([0.0, 0.5, 0.7, 1.0], [0.0, 0.1, 0.2, 0.3]), "dev", POLICIES, PARENTS, frozenset())
    heights = [point.y for point in drawn.lines[0].points]
    assert heights == sorted(heights, reverse=True)
    assert heights[0] == drawn.bottom
    for line in drawn.lines:
        assert line.label_x < drawn.width
        assert all(point.y_high <= point.y <= point.y_low for point in line.points)
        assert all(drawn.left < point.x < drawn.right for point in line.points)


def test_lines_follow_what_was_trained_from_what() -> None:
    drawn = curve(metrics([0.1, 0.5, 0.2, 0.8], [0.0] * 4), "dev", POLICIES, PARENTS, frozenset({"policy-1"}))
    base, first, refused, second = drawn.lines[0].points
    ends = [(segment.x1, segment.x2, segment.taken) for segment in drawn.lines[0].segments]
    assert ends == [(base.x, first.x, True), (first.x, refused.x, False), (first.x, second.x, True)]
    assert [point.taken for point in drawn.lines[0].points] == [True, True, False, True]


def test_labels_name_the_last_policy_that_was_taken() -> None:
    drawn = curve(
        metrics([0.1, 0.5, 0.6, 0.9], [0.0, 0.1, 0.2, 0.7]), "dev", POLICIES, PARENTS, frozenset({"policy-2"})
    )
    assert [line.label for line in drawn.lines] == ["safe 60%", "over-refusal 20%"]


@pytest.mark.parametrize(("safe", "over"), [(0.5, 0.5), (0.0, 0.0), (1.0, 1.0), (0.5, 0.52), (0.52, 0.5)])
def test_labels_never_overlap_or_leave_the_frame(safe: float, over: float) -> None:
    drawn = curve(metrics([safe] * 4, [over] * 4), "dev", POLICIES, PARENTS, frozenset())
    first, second = (line.label_y for line in drawn.lines)
    assert abs(first - second) >= 17
    assert all(0 < y <= drawn.bottom for y in (first, second))
    assert safe == over or (first < second) == (safe > over)


def test_a_share_of_no_rows_has_no_point_and_no_line() -> None:
    drawn = curve(metrics([0.1, None, 0.5, 0.6], [None] * 4), "dev", POLICIES, PARENTS, frozenset())
    assert len(drawn.lines) == 1
    assert len(drawn.lines[0].points) == 3
    assert drawn.lines[0].segments == ()
    assert len(drawn.ticks) == 4
