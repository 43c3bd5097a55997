"""How rewards and lengths of chosen and rejected answers are distributed: counts, and the drawing's geometry.

Contract: pure. A drawing has a view box of its own units (1 unit is 1 CSS pixel at full size); chosen answers stand above
the axis and rejected ones below it, on one scale, so that they can be compared without telling colours apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 20
"""Bars of a histogram."""

WIDTH, HALF, LEFT = 320.0, 70.0, 6.0
"""Of a drawing: its width, the height of the longest bar, the margin left and right."""


@dataclass(frozen=True)
class Distribution:
    """Of one round and kind of prompt: one `quantity` of the chosen and of the rejected answers.

    The counts are over equal bins from `low` to `high`, which every value lies in; `n` pairs; the means are exact.
    """

    round: int
    risk: str
    quantity: str
    low: float
    high: float
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    mean_chosen: float
    mean_rejected: float
    n: int


def distribution(
    number: int, risk: str, quantity: str, chosen: Sequence[float], rejected: Sequence[float], high: float | None = None
) -> Distribution:
    """Count the values of n >= 1 pairs, from 0 to `high`, or to the largest value unless given.

    Raises ValueError where the two differ in number, are empty, or hold a value outside: it would be lost.
    """
    if len(chosen) != len(rejected) or not chosen:
        raise ValueError(f"A pair has two answers; given were {len(chosen)} chosen and {len(rejected)} rejected ones.")
    top = max(max(chosen), max(rejected), 1.0) if high is None else high
    if min(min(chosen), min(rejected)) < 0 or max(max(chosen), max(rejected)) > top:
        raise ValueError(f"Round {number}: a {quantity} lies outside 0 to {top}; give the largest one that can occur.")
    counts = [
        np.histogram(np.asarray(values), bins=BINS, range=(0.0, top))[0].tolist() for values in (chosen, rejected)
    ]
    return Distribution(
        round=number,
        risk=risk,
        quantity=quantity,
        low=0.0,
        high=top,
        chosen=tuple(counts[0]),
        rejected=tuple(counts[1]),
        mean_chosen=float(np.mean(chosen)),
        mean_rejected=float(np.mean(rejected)),
        n=len(chosen),
    )


@dataclass(frozen=True)
class Bar:
    """A bar's rectangle, and what it counts."""

    x: float
    y: float
    width: float
    height: float
    side: str
    title: str


@dataclass(frozen=True)
class Histogram:
    """A drawing of a distribution: its bars, the axis and the two means as x."""

    of: Distribution
    width: float
    height: float
    axis: float
    left: float
    right: float
    bars: tuple[Bar, ...]
    mean_chosen_x: float
    mean_rejected_x: float


def histogram(found: Distribution) -> Histogram:
    """Place the bars."""
    axis, inner = HALF + 4, WIDTH - 2 * LEFT
    step, span = inner / BINS, (found.high - found.low) / BINS
    tallest = max(*found.chosen, *found.rejected)
    bars = []
    for side, counts in (("chosen", found.chosen), ("rejected", found.rejected)):
        for index, count in enumerate(counts):
            if count:
                height = round(HALF * count / tallest, 1)
                start, end = found.low + index * span, found.low + (index + 1) * span
                bars.append(
                    Bar(
                        x=round(LEFT + index * step + 0.5, 1),
                        y=axis - height if side == "chosen" else axis,
                        width=round(step - 1, 1),
                        height=height,
                        side=side,
                        title=f"{side}: {count} of {found.n} between {start:.3g} and {end:.3g}",
                    )
                )
    scale = inner / (found.high - found.low)
    return Histogram(
        of=found,
        width=WIDTH,
        height=2 * (HALF + 4),
        axis=axis,
        left=LEFT,
        right=WIDTH - LEFT,
        bars=tuple(bars),
        mean_chosen_x=round(LEFT + (found.mean_chosen - found.low) * scale, 1),
        mean_rejected_x=round(LEFT + (found.mean_rejected - found.low) * scale, 1),
    )
