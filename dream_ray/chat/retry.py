"""How many retries an endpoint is worth, and how long each waits.

Contract: pure; `RetryBudget` owns no clock and no task. Its methods are those of `Budget`, which may also be granted by
somebody else for several clients together (pipeline/retries.py).
"""

import random
from typing import Protocol

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 20.0
"""A retry waits a random time between 0 and FIRST_BACKOFF_S * 2 ** earlier retries, at most the longest (full jitter)."""

CALM_BACKOFF_S = 0.05
"""In place of FIRST_BACKOFF_S for a call that broke while the endpoint answers others: no herd comes back with it."""


def backoff_s(retries: int, refused: bool, retry_after: float | None, fails_most: bool) -> float:
    """Seconds until the next call of a question that was called again `retries` times before.

    `refused`: the endpoint ended the last call by saying that it is overloaded. `retry_after`: the seconds that it asked for;
    never less. `fails_most`: it fails at least as many calls as it answers.
    """
    first = FIRST_BACKOFF_S
    if not fails_most and not refused:
        first = CALM_BACKOFF_S
    if not fails_most and retry_after is not None:
        retries = 0  # the endpoint knows better for how long
    return (retry_after or 0.0) + random.uniform(0, min(LONGEST_BACKOFF_S, first * 2**retries))


class Budget(Protocol):
    """Who grants retries."""

    def asked(self) -> None:
        """A question was asked for the first time."""

    async def take(self) -> bool:
        """True where one more retry may be made; it is then spent."""


class Retries(Protocol):
    """Who grants the retries of all clients of an endpoint; it is pickled to them."""

    def budget(self, endpoint: str, ratio: float) -> Budget:
        """The budget of the endpoint, at `ratio` retries a question."""


class RetryBudget:
    """Retries as a share of the questions asked, as Finagle's and gRPC's retry throttling have it.

    Each question pays in `ratio`, each retry takes out 1. The account starts as if `AT_START` questions had been asked and
    holds what `AT_MOST` pay in, so that a long good time does not pay for hammering an endpoint that then goes down. The
    start pays for the calls that slow start has refused when it finds the endpoint's bound.
    """

    AT_START = 64
    AT_MOST = 200

    def __init__(self, ratio: float):
        self._ratio = ratio
        self._balance = self.AT_START * ratio

    def asked(self) -> None:
        """A question was asked for the first time."""
        self._balance = min(self._balance + self._ratio, self.AT_MOST * self._ratio)

    async def take(self) -> bool:
        """True where one more retry may be made; it is then spent."""
        if self._balance < 1:
            return False
        self._balance -= 1
        return True
