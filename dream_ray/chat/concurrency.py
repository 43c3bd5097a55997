"""How many calls an endpoint gets at once, and when it gets none.

Contract: `AdaptiveLimit` and `Silence` are pure state machines: they own no task, no client and no clock;
whoever makes the calls tells them how each one ended and when. `Gate` is the thin asynchronous door in front of the calls.

The limit follows TCP (RFC 5681): slow start doubles it with each window of outcomes until the endpoint pushes back, after
that it climbs by a tenth, and overload lowers it, at most by half and at most once per window. Other than TCP it need not
wait for the first answers, which take seconds: an overloaded endpoint refuses within milliseconds, so the limit opens a
little every moment while questions wait and few are refused. Nor need it guess how far to go down: calls that were out when
others were refused are what the endpoint bears.

What overload is: calls that the endpoint refuses by its own word, as AWS's SDKs and Netflix's concurrency-limits have it. A
call that broke (500, time-out, broken connection) says less: a lower limit is tried, and taken back where the share of
broken calls does not fall with it, for then load is not their cause. Of either kind up to `TOLERATED` of a window is let
pass.
"""

import asyncio
import heapq
import math
import time
from collections import deque
from dataclasses import dataclass

START = 16
"""Calls in flight before anything is known of the endpoint."""

OPENING, STEP_S = 1.25, 0.1
"""Until the first window ends, the limit grows by this factor this often while questions wait."""

MIN_WINDOW = 16
"""Outcomes of the smallest window; a window is about one call per slot."""

LONGEST_FIRST_REST_S = 1.0
"""Longest rest of a slot that was refused before anything was answered."""

TOLERATED = 0.2
"""Share of refused, and of broken calls in a window that is not laid to our load."""

DOWN = 0.5
"""An endpoint that fails this share of the calls is down: more of them at once serve nobody, whatever the cause."""

CLIMB = 0.1
"""Growth per clear window once slow start is over."""

MARGIN = 0.05
"""Share of broken calls that a decrease leaves: an endpoint that never breaks one is not used to the full."""

PLATEAU = 8
"""Windows between a decrease and the next climb, so that the endpoint's bound is not run into all the time."""

RECENT = 16
"""Outcomes that say whether an endpoint fails everybody."""

SERVICE_WEIGHT = 0.1
"""Weight of the newest answered call in the mean service time."""


@dataclass(frozen=True)
class _Trial:
    """What held before the limit was lowered for a share of broken calls."""

    limit: float
    threshold: float
    share: float


class AdaptiveLimit:
    """See the module's contract. Times are seconds on any one clock."""

    def __init__(self, maximum: int):
        self._maximum = float(maximum)
        self._limit = min(float(START), self._maximum)
        self._threshold = self._maximum
        self._count = self._refused = self._broken = self._borne = self._plateau = self._answers = 0
        self._in_decrease = False
        self._opening = True
        self._step_at: float | None = None
        self._first_start = float("inf")
        self._lowered_at = float("-inf")
        self._tried: _Trial | None = None
        self._unrelieved = 0.0
        self._recent: deque[bool] = deque(maxlen=RECENT)
        self.held_until = float("-inf")
        """No new call before this."""
        self.service_s = 0.0
        """Mean duration of answered calls; 0 before the first."""
        self.fails_most = False
        """The endpoint fails at least as many calls as it answers."""

    @property
    def limit(self) -> int:
        """Calls that may be in flight now."""
        return max(1, round(self._limit))

    def widen(self, now: float) -> float | None:
        """Questions wait because of the limit alone. Returns when it grows for that, `now` where it has just done so; None
        where time changes nothing."""
        if not self._opening or self._limit >= self._maximum:
            return None
        if self._step_at is None or now < self._step_at:
            self._step_at = self._step_at or now + STEP_S
            return self._step_at
        self._limit = min(OPENING * self._limit, self._maximum)
        self._step_at = None
        return now

    def answered(self, started: float, now: float) -> None:
        """A call came back with an answer."""
        self._answers += 1
        took = now - started
        self.service_s = took if not self.service_s else self.service_s + SERVICE_WEIGHT * (took - self.service_s)
        self.failed(started, now)

    def failed(self, started: float, now: float) -> None:
        """A call ended without an answer in a way that no load causes, such as 404."""
        self._note(False, started, 0)
        self._count_in(started, now)

    def refused(self, started: float, now: float, others: int, retry_after: float | None = None) -> float:
        """The endpoint said that it is overloaded while `others` of our calls were out. Returns how long the slot is to
        rest.

        `retry_after` are the seconds that the endpoint asked to be left alone. They hold back all new calls where it
        fails at least as many as it answers; else the caller alone waits.
        """
        self._note(True, started, others)
        self._count_in(started, now, refused=1, borne=others)
        if retry_after is not None and self.fails_most:
            self.held_until = max(self.held_until, now + retry_after)
        # Refusals come quicker than answers: without a rest one slot would send more of them than answers. Before the first
        # answer, one takes at least as long as it has been waited for.
        unanswered_s = min(now - self._first_start, LONGEST_FIRST_REST_S)
        return (self.service_s or unanswered_s) - (now - started)

    def broke(self, started: float, now: float, others: int) -> float:
        """A call came to nothing, with or without load: 500, time-out, broken connection. Returns how long the slot is
        to rest."""
        self._note(True, started, others)
        self._count_in(started, now, broken=1)
        return self.service_s - (now - started) if self.fails_most else 0.0

    def _note(self, bad: bool, started: float, others: int) -> None:
        self._first_start = min(self._first_start, started)
        self._recent.append(bad)
        # Faults come before answers: until there are some of these, what is still out counts as fine.
        unknown = others if self._answers < RECENT else 0
        self.fails_most = 2 * sum(self._recent) >= len(self._recent) + unknown

    def _count_in(self, started: float, now: float, refused: int = 0, broken: int = 0, borne: int = 0) -> None:
        # What was sent under the higher limit says nothing about the lower one.
        if started < self._lowered_at:
            return
        self._count += 1
        self._refused += refused
        self._broken += broken
        self._borne += borne
        size = max(MIN_WINDOW, self._limit)
        if self._opening and max(self._refused, self._broken) > _bound(size) * size:
            self._count = max(self._count, round(size))  # what is still out cannot change the verdict
        if self._count < size:
            return
        self._opening = False
        bound = _bound(self._count)
        refused_share, broken_share = self._refused / self._count, self._broken / self._count
        served = self._borne / max(1, self._refused)  # on average: one refused by chance says little
        self._count = self._refused = self._broken = self._borne = 0
        self._judge_trial(broken_share)
        if refused_share > bound:
            # Where it refuses a burst, the rest of the burst was out as well.
            self._lower(0.5 if self.fails_most and refused_share > DOWN else served / self._limit, now)
        elif broken_share - self._unrelieved > bound:
            self._tried = _Trial(self._limit, self._threshold, broken_share)
            self._lower(1 - broken_share + MARGIN, now)
        elif self._plateau:
            self._plateau -= 1
            self._in_decrease = False
        else:
            self._in_decrease = False
            doubled_to = min(2 * self._limit, self._threshold)
            self._limit = min(max(doubled_to, self._limit + max(1.0, CLIMB * self._limit)), self._maximum)

    def _judge_trial(self, share: float) -> None:
        """Where this is the first window under a limit that was lowered for broken calls: did it help?"""
        self._unrelieved = min(self._unrelieved, (self._unrelieved + share) / 2)
        trial, self._tried = self._tried, None
        if trial is None:
            return
        # An overloaded endpoint goes on serving as many as before, so that of fewer calls fewer break.
        relieved = max(0.0, 1 - (1 - trial.share) * trial.limit / self._limit)
        if (trial.share + relieved) / 2 < share < DOWN:
            self._limit, self._threshold, self._unrelieved = trial.limit, trial.threshold, share
            self._plateau = 0

    def _lower(self, left: float, now: float) -> None:
        """Go down to this share of the limit."""
        # One crisis takes several decreases; slow start is to lead back to where the first of them began.
        if not self._in_decrease:
            self._threshold = self._limit / 2
        self._in_decrease = True
        self._limit = max(1.0, self._limit * max(0.5, min(1.0, left)))
        self._plateau = PLATEAU if self._limit >= self._threshold else 0
        self._lowered_at = now


def _bound(outcomes: float) -> float:
    """The share that is let pass of so many outcomes: one standard deviation more, so that few pass it by chance."""
    return TOLERATED + math.sqrt(TOLERATED * (1 - TOLERATED) / outcomes)


class Silence:
    """Whether an endpoint lets every question run into its deadline, so that each would cost a whole one for nothing.

    `most` deadlines that pass one after the other without a single answer make it silent for `pause_s`, after which it is
    asked again. Questions that wait at the same time count as one: a pause of the endpoint ends them all. As with the limit,
    times are seconds on any one clock.
    """

    def __init__(self, most: int, pause_s: float):
        self._most, self._pause_s = most, pause_s
        self._deadlines = 0
        self._counted_at = self._until = float("-inf")

    def lasts(self, now: float) -> bool:
        """True where nothing is to be asked."""
        return now < self._until

    def broken(self) -> None:
        """An answer came."""
        self._deadlines, self._until = 0, float("-inf")

    def timed_out(self, asked: float, now: float) -> None:
        """A question that was first asked at `asked` got no answer until its deadline."""
        if asked < self._counted_at:
            return
        self._counted_at = now
        self._deadlines += 1
        if self._deadlines >= self._most:
            self._until = now + self._pause_s


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
        self._allowed = limit.limit
        self._wake: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        """Slots that are given out."""
        return self._in_flight

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
        for _ in range(min(self._allowed - self._limit.limit, len(self._resting))):
            heapq.heappop(self._resting)  # a lower limit takes away those slots first that serve nobody
        hold = self._limit.held_until - now
        if hold > self._longest_hold_s:
            while self._waiting:
                self._refuse(self._waiting.popleft(), hold)
        wake_at = [now + hold] if hold > 0 else [*self._fill(now), *self._resting[:1]]
        self._allowed = self._limit.limit
        if self._wake is not None:
            self._wake.cancel()
        if self._waiting and wake_at:
            self._wake = asyncio.get_running_loop().call_later(min(wake_at) - now, self._admit)

    def _fill(self, now: float) -> list[float]:
        """Let in as many as there are slots; the moment of the next one, where the limit grows with time."""
        while True:
            while self._waiting and self._waiting[0].done():  # cancelled
                self._waiting.popleft()
            if not self._waiting:
                return []
            if self._in_flight + len(self._resting) < self._limit.limit:
                self._in_flight += 1
                self._waiting.popleft().set_result(None)
            elif (wider_at := self._limit.widen(now)) is None or wider_at > now:
                return [] if wider_at is None else [wider_at]

    @staticmethod
    def _refuse(waiter: "asyncio.Future[None]", seconds: float) -> None:
        if not waiter.done():
            waiter.set_exception(HeldBack(seconds))
