"""The geometry of the trade-off plot: safety against over-refusal, a point per policy, lines from each to the next.

Contract: pure, as chart.py. The upper left corner is where a policy belongs: every risky prompt answered safely, no benign
one refused. Several runs may share a plot; each is a series with a number that the page gives a colour and a shape.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dream_ray.evaluate.metrics import find_metric, share_of
from dream_ray.records import Metric

_LEFT, _TOP, _SIDE = 46.0, 28.0, 300.0
"""The square that both shares span; above it stands what its height means."""
_LINE = 14.0
"""Least vertical distance of two labels that stand over each other."""
_LABEL = 7.0
"""Width of a letter, about: what decides whether two labels meet."""


@dataclass(frozen=True)
class Series:
    """One run: its metrics, its policies in order, what each was trained from, which were refused, and what precedes the
    policies' names in the plot ("" where there is one run)."""

    name: str
    metrics: Sequence[Metric]
    policies: Sequence[str]
    parents: Mapping[str, str]
    refused: frozenset[str]


@dataclass(frozen=True)
class Spot:
    """A policy: its place, the ends of both intervals, and its label beside it."""

    series: int
    x: float
    y: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    taken: bool
    label: str
    label_x: float
    label_y: float
    label_anchor: str
    title: str


@dataclass(frozen=True)
class Step:
    """A line from a policy to the one trained from it."""

    series: int
    x1: float
    y1: float
    x2: float
    y2: float
    taken: bool


@dataclass(frozen=True)
class Tradeoff:
    """A drawing of one split."""

    split: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    grid: tuple[tuple[float, float, str], ...]
    spots: tuple[Spot, ...]
    steps: tuple[Step, ...]


def tradeoff(split: str, series: Sequence[Series]) -> Tradeoff:
    """The plot of one split; a policy of which one of the two shares is not known has no point."""
    spots: list[Spot] = []
    steps: list[Step] = []
    for number, one in enumerate(series):
        own: dict[str, Spot] = {}
        for policy in one.policies:
            rows = [metric for metric in one.metrics if metric.policy == policy]
            safe, over = (share_of(find_metric(rows, split, name)) for name in ("safe", "over_refusal"))
            if safe is None or over is None:
                continue
            label = f"{one.name} {policy}".strip()
            x, y = _x(over.value), _y(safe.value)
            right = over.value < 0.55
            spot = Spot(
                series=number,
                x=x,
                y=y,
                x_low=_x(over.low),
                x_high=_x(over.high),
                y_low=_y(safe.low),
                y_high=_y(safe.high),
                taken=policy not in one.refused,
                label=label,
                label_x=x + 9 if right else x - 9,
                label_y=_free(y - 7, x, label, right, [*spots, *own.values()]),
                label_anchor="start" if right else "end",
                title=f"{label}: safe {safe.value:.0%} [{safe.low:.0%}, {safe.high:.0%}], over-refusal "
                f"{over.value:.0%} [{over.low:.0%}, {over.high:.0%}]",
            )
            own[policy] = spot
        spots += own.values()
        steps += [
            Step(number, own[parent].x, own[parent].y, spot.x, spot.y, spot.taken)
            for policy, spot in own.items()
            if (parent := one.parents.get(policy)) in own and parent is not None
        ]
    return Tradeoff(
        split=split,
        width=_LEFT + _SIDE + 24,
        height=_TOP + _SIDE + 44,
        left=_LEFT,
        right=_LEFT + _SIDE,
        top=_TOP,
        bottom=_TOP + _SIDE,
        grid=tuple((_x(share), _y(share), f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)),
        spots=tuple(spots),
        steps=tuple(steps),
    )


def _x(share: float) -> float:
    return round(_LEFT + _SIDE * share, 1)


def _y(share: float) -> float:
    return round(_TOP + _SIDE * (1 - share), 1)


def _free(y: float, x: float, label: str, right: bool, others: Sequence[Spot]) -> float:
    """The height nearest to `y` where the label meets no other one; inside the frame."""
    start = x if right else x - _LABEL * len(label)
    end = start + _LABEL * len(label)
    taken = []
    for other in others:
        other_start = other.x if other.label_anchor == "start" else other.x - _LABEL * len(other.label)
        if other_start < end and start < other_start + _LABEL * len(other.label):
            taken.append(other.label_y)
    offsets = [sign * step * _LINE / 2 for step in range(60) for sign in (1, -1)]
    for offset in offsets:
        place = y + offset
        if _TOP + 8 <= place <= _TOP + _SIDE and all(abs(place - height) >= _LINE for height in taken):
            return round(place, 1)
    return y
