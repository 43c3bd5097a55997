"""Two policies on the same prompts: how much a number changed, and whether by more than chance.

Contract: pure. Only prompts whose value is known for both policies are compared; the others are counted as left out.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000
"""Resamples of a bootstrap: the ends of the interval then vary by less than a tenth of its width."""

SIGNIFICANCE = 0.05
"""Of the exact test, beside the 95 % of the interval."""


@dataclass(frozen=True)
class Difference:
    """after - before of a share over `n` shared prompts, with its 95 % interval, all in [-1, 1]; None where n is 0.

    `gained` prompts went from False to True, `lost` the other way. `left_out` prompts have no value for one of the two.
    """

    before: float | None
    after: float | None
    value: float | None
    low: float | None
    high: float | None
    n: int
    gained: int
    lost: int
    left_out: int

    @property
    def p_value(self) -> float:
        """How likely the changed prompts would lie this unevenly, or more so, if each were as likely gained as lost.

        Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
        Psychometrika 12 (1947), in its exact form: two-sided, binomial over the changed prompts. 1 where none changed.
        """
        changed = self.gained + self.lost
        tail = sum(math.comb(changed, k) for k in range(min(self.gained, self.lost) + 1))
        ways: int = 2**changed
        return min(1.0, 2 * tail / ways)


@dataclass(frozen=True)
class Comparison:
    """How a number of a benchmark changed from one policy to another. `wants_high` says which way is better."""

    before: str
    after: str
    benchmark: str
    name: str
    wants_high: bool
    difference: Difference

    @property
    def verdict(self) -> str:
        """ "better" or "worse" where the number changed by more than chance, else nothing.

        The interval has to leave zero out and the exact test to agree: where a few prompts changed, all one way, a
        bootstrap alone is too sure of itself (four of fifty give it an interval above zero, and a p of 0.125).
        """
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0 <= high or self.difference.p_value >= SIGNIFICANCE:
            return ""
        return "better" if (low > 0) == self.wants_high else "worse"

    def as_json(self) -> dict[str, Any]:
        """All that the comparison says, for a file."""
        return asdict(self) | {"p_value": self.difference.p_value, "verdict": self.verdict}


def paired_bootstrap(
    before: Mapping[str, bool | None], after: Mapping[str, bool | None], seed: int, resamples: int = RESAMPLES
) -> Difference:
    """The difference of two shares over the same prompts, by prompt id, with a percentile bootstrap interval.

    Method: B. Efron and R. Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13: prompts are drawn with
    replacement, both values of a prompt together, so that what makes a prompt hard for both policies cancels out. A prompt's
    difference is -1, 0 or 1, hence a resample is one multinomial draw of their counts. The same seed gives the same interval.
    Where no prompt changed the interval has no width: it says nothing of prompts that were not measured.
    """
    both = [(old, after[key]) for key, old in before.items() if key in after]
    known = [(old, new) for old, new in both if old is not None and new is not None]
    left_out = len(before.keys() | after.keys()) - len(known)
    n = len(known)
    if not n:
        return Difference(None, None, None, None, None, 0, 0, 0, left_out)
    gained = sum(new and not old for old, new in known)
    lost = sum(old and not new for old, new in known)
    draws = np.random.default_rng(seed).multinomial(n, [lost / n, (n - lost - gained) / n, gained / n], size=resamples)
    low, high = np.percentile((draws[:, 2] - draws[:, 0]) / n, [2.5, 97.5])
    return Difference(
        before=sum(old for old, _ in known) / n,
        after=sum(new for _, new in known) / n,
        value=(gained - lost) / n,
        low=float(low),
        high=float(high),
        n=n,
        gained=gained,
        lost=lost,
        left_out=left_out,
    )
