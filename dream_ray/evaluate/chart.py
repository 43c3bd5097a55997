"""The geometry of the report's curves: metrics to coordinates, which the template draws as SVG.

Contract: pure; `curve` places the two numbers of each policy of one split, with interval whiskers, in a view box of its
own units (1 unit is 1 CSS pixel where the drawing is shown at full size). Nothing here knows HTML or colours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dream_ray.evaluate.metrics import METRIC_RISK, Share, find_metric, share_of
from dream_ray.records import Metric

LABELS = {"safe": "safe", "over_refusal": "over-refusal"}
"""What the two numbers are called beside their lines."""

_LEFT, _TOP, _HEIGHT = 44.0, 14.0, 210.0
_RIGHT = 150.0
"""Room for the direct label of a line: "over-refusal 100%"."""
_STEP = 66.0
"""Between two policies: the width of a tick label."""
_NUDGE = 5.0
"""Half the horizontal distance between the two numbers of a policy, so that their whiskers do not cover each other."""
_LABEL_GAP = 17.0
"""Least vertical distance between the labels of the two lines: one line of text."""


@dataclass(frozen=True)
class Point:
    """One share with the ends of its whisker; `taken` is False for a policy that a round made and the run refused."""

    x: float
    y: float
    y_low: float
    y_high: float
    taken: bool
    title: str


@dataclass(frozen=True)
class Segment:
    """A line from a policy to the one trained from it; not `taken` where the latter was refused."""

    x1: float
    y1: float
    x2: float
    y2: float
    taken: bool


@dataclass(frozen=True)
class Line:
    """One number over the policies; `label` stands at (label_x, label_y)."""

    name: str
    label: str
    label_x: float
    label_y: float
    points: tuple[Point, ...]
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Tick:
    """A policy on the x axis."""

    x: float
    policy: str
    taken: bool


@dataclass(frozen=True)
class Curve:
    """A drawing: size of the view box, the frame, horizontal grid lines (y, text), ticks and lines."""

    split: str
    width: float
    height: float
    left: float
    right: float
    bottom: float
    grid: tuple[tuple[float, str], ...]
    ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


def curve(
    metrics: Sequence[Metric], split: str, policies: Sequence[str], parents: Mapping[str, str], refused: frozenset[str]
) -> Curve:
    """The curve of one split.

    `parents` says which policy each one was trained from, and `refused` which ones the run did not take. A share of no
    rows has no point, and no line leads to it.
    """
    bottom = _TOP + _HEIGHT
    right = _LEFT + _STEP * len(policies)
    xs = {policy: _LEFT + _STEP * (index + 0.5) for index, policy in enumerate(policies)}
    lines = []
    for name, nudge in zip(METRIC_RISK, (-_NUDGE, _NUDGE), strict=True):
        points, shares = {}, {}
        for policy in policies:
            metric = find_metric([row for row in metrics if row.policy == policy], split, name)
            share = share_of(metric)
            if metric is not None and share is not None:
                points[policy] = _point(metric, share, xs[policy] + nudge, policy not in refused)
                shares[policy] = share.value
        if points:
            # The label names the last policy that the run took: its number is the result.
            last = ([policy for policy in points if policy not in refused] or list(points))[-1]
            lines.append(
                Line(
                    name=name,
                    label=f"{LABELS[name]} {shares[last]:.0%}",
                    label_x=right + 6,
                    label_y=points[last].y,
                    points=tuple(points.values()),
                    segments=_segments(points, parents),
                )
            )
    return Curve(
        split=split,
        width=right + _RIGHT,
        height=bottom + 44,
        left=_LEFT,
        right=right,
        bottom=bottom,
        grid=tuple((_y(share), f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)),
        ticks=tuple(Tick(xs[policy], policy, policy not in refused) for policy in policies),
        lines=_apart(lines),
    )


def _y(share: float) -> float:
    return round(_TOP + _HEIGHT * (1 - share), 1)


def _point(metric: Metric, share: Share, x: float, taken: bool) -> Point:
    number = f"{LABELS[metric.name]} {share.value:.0%}, 95% interval {share.low:.0%} to {share.high:.0%}"
    title = f"{metric.policy}: {number}, n = {metric.n}"
    return Point(x, _y(share.value), _y(share.low), _y(share.high), taken, title)


def _segments(points: Mapping[str, Point], parents: Mapping[str, str]) -> tuple[Segment, ...]:
    return tuple(
        Segment(points[parent].x, points[parent].y, point.x, point.y, point.taken)
        for policy, point in points.items()
        if (parent := parents.get(policy)) is not None and parent in points
    )


def _apart(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The lines with their labels far enough from each other to be read, and inside the frame."""
    if len(lines) < 2:
        return tuple(lines)
    upper, lower = sorted(line.label_y for line in lines)
    missing = max(0.0, _LABEL_GAP - (lower - upper)) / 2
    upper, lower = upper - missing, lower + missing
    shift = max(0.0, _TOP - upper) - max(0.0, lower - (_TOP + _HEIGHT))
    places = {True: upper + shift, False: lower + shift}
    first_is_upper = lines[0].label_y <= lines[1].label_y
    return tuple(
        Line(line.name, line.label, line.label_x, places[is_upper], line.points, line.segments)
        for line, is_upper in zip(lines, (first_is_upper, not first_is_upper), strict=True)
    )
