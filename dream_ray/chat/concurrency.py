"""How many calls an endpoint gets at once, and how many retries it is worth.

Contract: `AdaptiveLimit` and `RetryBudget` are pure state machines: they own no task, no client and no clock; whoever makes
the calls tells them how each one ended and when. `Gate` is the thin asynchronous door in front of the calls.

The limit follows TCP (RFC 5681): slow start doubles it with each window of outcomes until the endpoint pushes back, after
that it climbs by a tenth, and strain lowers it by the share of calls that came to nothing (as DCTCP does, RFC 8257: what
is left is what the endpoint served), at most by half and at most once per window. A stray error is no strain: only where
more than `TOLERATED` of a window fails has load to be the cause, and a fault at random would otherwise push the limit
to 1.
"""

import asyncio
import heapq
import math
import time
from collections import deque

START = 16
"""Calls in flight before anything is known of the endpoint."""

MIN_WINDOW = 16
"""Outcomes of the smallest window; a window is about one call per slot."""

TOLERATED = 0.2
"""Share of strained calls in a window that is not laid to our load."""

CLIMB = 0.1
"""Growth per clear window once slow start is over."""

MARGIN = 0.05
"""Share of strained calls that a decrease leaves: an endpoint that is never refused is not used to the full."""

PLATEAU = 4
"""Windows between a decrease and the next climb, so that the endpoint's bound is not run into all the time."""

RECENT = 16
"""Outcomes that say whether an endpoint that asks for a pause is refusing everybody."""

SERVICE_WEIGHT = 0.1
"""Weight of the newest answered call in the mean service time."""


class AdaptiveLimit:
    """See the module's contract. Times are seconds on any one clock."""

    def __init__(self, maximum: int):
        self._maximum = float(maximum)
        self._limit = min(float(START), self._maximum)
        self._threshold = self._maximum
        self._count = self._strained = self._plateau = 0
        self._in_decrease = False
        self._lowered_at = float("-inf")
        self._recent: deque[bool] = deque(maxlen=RECENT)
        self.held_until = float("-inf")
        """No new call before this."""
        self.service_s = 0.0
        """Mean duration of answered calls."""

    @property
    def limit(self) -> int:
        """Calls that may be in flight now."""
        return max(1, round(self._limit))

    def answered(self, started: float, now: float) -> None:
        """A call came back with an answer, or with an error that no load causes."""
        took = now - started
        self.service_s = took if not self.service_s else self.service_s + SERVICE_WEIGHT * (took - self.service_s)
        self._count_in(False, started, now)

    def strained(self, started: float, now: float, retry_after: float | None = None) -> None:
        """A call failed as calls to an overloaded endpoint do: 429, 5xx, time-out, broken connection.

        `retry_after` are the seconds that the endpoint asked to be left alone. They hold back all new calls where it
        refuses at least as much as it answers; else the caller alone waits.
        """
        self._count_in(True, started, now)
        if retry_after is not None and 2 * sum(self._recent) >= len(self._recent):
            self.held_until = max(self.held_until, now + retry_after)

    def _count_in(self, failed: bool, started: float, now: float) -> None:
        self._recent.append(failed)
        # What was sent under the higher limit says nothing about the lower one.
        if started < self._lowered_at:
            return
        self._count += 1
        self._strained += failed
        if self._count < max(MIN_WINDOW, self._limit):
            return
        count, share = self._count, self._strained / self._count
        self._count = self._strained = 0
        # One standard deviation more: few outcomes pass the bound by chance.
        if share > TOLERATED + math.sqrt(TOLERATED * (1 - TOLERATED) / count):
            self._lower(share, now)
        elif self._plateau:
            self._plateau -= 1
            self._in_decrease = False
        else:
            self._in_decrease = False
            doubled_to = min(2 * self._limit, self._threshold)
            self._limit = min(max(doubled_to, self._limit + max(1.0, CLIMB * self._limit)), self._maximum)

    def _lower(self, share: float, now: float) -> None:
        # One crisis takes several decreases; slow start is to lead back to where the first of them began.
        if not self._in_decrease:
            self._threshold = self._limit / 2
        self._in_decrease = True
        self._limit = max(1.0, self._limit * max(0.5, 1 - share + MARGIN))
        self._plateau = PLATEAU if self._limit >= self._threshold else 0
        self._lowered_at = now


class RetryBudget:
    """Retries as a share of the questions asked, as Finagle's and gRPC's retry throttling have it.

    Each question pays in `ratio`, each retry takes out 1. The account starts as if `AT_START` questions had been asked and
    holds what `AT_MOST` pay in, so that a long good time does not pay for hammering an endpoint that then goes down.
    """

    AT_START = 20
    AT_MOST = 200

    def __init__(self, ratio: float):
        self._ratio = ratio
        self._balance = self.AT_START * ratio

    def asked(self) -> None:
        """A question was asked for the first time."""
        self._balance = min(self._balance + self._ratio, self.AT_MOST * self._ratio)

    def take(self) -> bool:
        """True where one more retry may be made; it is then spent."""
        if self._balance < 1:
            return False
        self._balance -= 1
        return True


class HeldBack(Exception):
    """The endpoint asked for a pause of `seconds`, longer than anyone here waits."""

    def __init__(self, seconds: float):
        super().__init__(f"the endpoint asked for a pause of {seconds:.0f} s more")
        self.seconds = seconds


class Gate:
    """Lets calls through as a limit allows: first come, first served, but who comes back to try again goes first."""

    def __init__(self, limit: AdaptiveLimit, longest_hold_s: float):
        self._limit, self._longest_hold_s = limit, longest_hold_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._in_flight = 0
        self._resting: list[float] = []
        self._wake: asyncio.TimerHandle | None = None

    async def enter(self, again: bool = False) -> None:
        """Wait for a slot; `leave` gives it back. `again`: the question was let in before. Raises HeldBack."""
        waiter = asyncio.get_running_loop().create_future()
        if again:
            self._waiting.appendleft(waiter)
        else:
            self._waiting.append(waiter)
        self._admit()
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # let in and cancelled in the same moment
                self.leave()
            raise

    def leave(self, rest_s: float = 0) -> None:
        """Give the slot back, after `rest_s` seconds in which nobody has it."""
        self._in_flight -= 1
        if rest_s > 0:
            heapq.heappush(self._resting, time.monotonic() + rest_s)
        self._admit()

    def _admit(self) -> None:
        """Let in whom the limit allows now; where only time stands in the way, look again then."""
        now = time.monotonic()
        while self._resting and self._resting[0] <= now:
            heapq.heappop(self._resting)
        hold = self._limit.held_until - now
        while self._waiting and self._waiting[0].done():  # cancelled
            self._waiting.popleft()
        if hold > self._longest_hold_s:
            while self._waiting:
                self._refuse(self._waiting.popleft(), hold)
        while self._waiting and hold <= 0 and self._in_flight + len(self._resting) < self._limit.limit:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._in_flight += 1
                waiter.set_result(None)
        if self._wake is not None:
            self._wake.cancel()
        if self._waiting and (hold > 0 or self._resting):
            wait = hold if hold > 0 else self._resting[0] - now
            self._wake = asyncio.get_running_loop().call_later(wait, self._admit)

    @staticmethod
    def _refuse(waiter: "asyncio.Future[None]", seconds: float) -> None:
        if not waiter.done():
            waiter.set_exception(HeldBack(seconds))
