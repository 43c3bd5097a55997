"""The limit as a pure machine, on a clock of the test's own, and the gate in front of real tasks."""

import asyncio
import heapq
import itertools
import random
from typing import Any

import pytest

from dream_ray.chat.concurrency import START, STEP_S, AdaptiveLimit, Gate, HeldBack, Silence


def simulate(
    limit: AdaptiveLimit,
    calls: int,
    capacity: int,
    faulty: float = 0.0,
    service_s: float = 1.0,
    start: float = 0.0,
    seed: int = 0,
    breaks: bool = False,
) -> tuple[float, list[int], int]:
    """An endless queue in front of an endpoint that serves `capacity` calls at once, refuses the others at once and breaks
    a share of the served ones at random. A slot rests as the limit says. `breaks`: for lack of room it breaks calls, too.

    Returns the time at the end, the limit after each outcome and how many calls came to nothing for lack of room.
    """
    dice = random.Random(seed)
    now, in_flight, refused = start, 0, 0
    events: list[tuple[float, int, float, bool, bool]] = []
    history: list[int] = []
    serving = number = out = 0
    while len(history) < calls:
        while in_flight < limit.limit:
            room = serving < capacity
            fine = room and dice.random() >= faulty
            refused += not room
            took = service_s * dice.uniform(0.7, 1.3) if fine else 0.01 * service_s
            serving += room
            out += 1
            heapq.heappush(events, (now + took, number, now, fine, room))
            number += 1
            in_flight += 1
        now, _, started, fine, room = heapq.heappop(events)
        if started < 0:  # a slot that has rested
            in_flight -= 1
            continue
        serving -= room
        out -= 1
        history.append(limit.limit)
        if fine:
            limit.answered(started, now)
            in_flight -= 1
            continue
        rest_s = limit.broke(started, now, out) if room or breaks else limit.refused(started, now, out)
        heapq.heappush(events, (now + max(0.0, rest_s), number, -1.0, False, False))
        number += 1
    return now, history, refused


def test_a_healthy_endpoint_is_used_to_the_maximum() -> None:
    _, history, _ = simulate(AdaptiveLimit(64), 500, capacity=1000)
    assert history[0] == START
    assert history[-1] == 64
    assert history == sorted(history)
    assert history.index(64) < 100


def test_the_maximum_binds_from_the_start() -> None:
    _, history, _ = simulate(AdaptiveLimit(3), 100, capacity=1000)
    assert set(history) == {3}


@pytest.mark.parametrize("capacity", [4, 20, 32, 50])
def test_the_limit_finds_the_endpoints_bound_and_stays_near_it(capacity: int) -> None:
    calls = 6000
    seconds, history, refused = simulate(AdaptiveLimit(256), calls, capacity)
    settled = history[calls // 3 :]
    assert sum(settled) / len(settled) < 1.3 * capacity + 1
    assert (calls - refused) / seconds > 0.9 * capacity
    assert refused < 0.15 * calls


@pytest.mark.parametrize("capacity", [4, 20, 32, 50])
def test_an_endpoint_that_breaks_what_is_too_much_gets_less(capacity: int) -> None:
    seconds, history, broken = simulate(AdaptiveLimit(256), 6000, capacity, breaks=True)
    settled = history[2000:]
    assert sum(settled) / len(settled) < 1.3 * capacity + 1
    assert (6000 - broken) / seconds > 0.6 * capacity
    assert broken < 0.15 * 6000


@pytest.mark.parametrize("faulty", [0.1, 0.2, 0.3, 0.4])
def test_faults_that_fewer_calls_do_not_relieve_leave_the_limit_where_it_is(faulty: float) -> None:
    limit = AdaptiveLimit(64)
    now, history, _ = simulate(limit, 3000, capacity=1000, faulty=faulty)
    assert sum(history[500:]) / len(history[500:]) > 55
    now, _, _ = simulate(limit, 1000, capacity=1000, start=now)
    _, history, _ = simulate(limit, 3000, capacity=1000, faulty=faulty, start=now)
    assert sum(history) / len(history) > 55


@pytest.mark.parametrize("capacity", [4, 20, 32])
def test_faults_beside_overload_do_not_hide_the_endpoints_bound(capacity: int) -> None:
    _, history, refused = simulate(AdaptiveLimit(256), 6000, capacity, faulty=0.3)
    settled = history[2000:]
    assert 0.9 * capacity < sum(settled) / len(settled) < 1.3 * capacity + 1
    assert refused < 0.15 * 6000


def test_a_slot_rests_where_the_endpoint_refuses_or_fails_most() -> None:
    limit = AdaptiveLimit(16)
    for _ in range(8):
        limit.answered(0.0, 2.0)
    assert limit.refused(2.0, 2.5, others=0) == 1.5
    assert [limit.broke(2.0, 2.5, others=0) for _ in range(7)] == [0.0] * 6 + [1.5]


@pytest.mark.parametrize("death", [{"capacity": 0}, {"capacity": 1000, "faulty": 1.0}], ids=["refuses", "breaks"])
def test_a_dead_endpoint_gets_one_call_at_a_time_and_comes_back(death: dict[str, Any]) -> None:
    limit = AdaptiveLimit(64)
    now, history, _ = simulate(limit, 500, capacity=1000)
    assert history[-1] == 64
    now, history, _ = simulate(limit, 200, start=now, **death)
    assert history[-1] == 1
    drops = [(before, after) for before, after in itertools.pairwise(history) if after != before]
    assert all(after >= before // 2 for before, after in drops)
    _, history, _ = simulate(limit, 1000, capacity=1000, start=now)
    assert history[-1] == 64


def test_the_limit_opens_with_time_while_questions_wait_and_few_are_refused() -> None:
    limit = AdaptiveLimit(64)
    moments = [limit.widen(0.0)]
    assert limit.widen(0.05) == moments[0] == STEP_S  # too early
    for _ in range(20):
        if (moment := limit.widen(moments[-1] or 0.0)) is not None:
            moments.append(moment)
    assert limit.limit == 64
    assert moments[-1] is not None
    assert moments[-1] < 1
    assert limit.widen(100.0) is None


def test_an_endpoint_that_refuses_stops_the_opening_where_it_serves_the_others() -> None:
    limit = AdaptiveLimit(64)
    now: float | None = 0.0
    while limit.limit < 39:
        now = limit.widen(now or 0.0)
    for refused in range(15):
        limit.refused(0.0, 0.5, others=38 - min(refused, 7))
    assert 31 <= limit.limit <= 36
    assert limit.widen(100.0) is None


def test_a_refused_slot_rests_for_as_long_as_the_first_answer_has_been_waited_for() -> None:
    limit = AdaptiveLimit(64)
    assert limit.refused(0.0, 0.1, others=15) == 0.0
    assert limit.refused(0.4, 0.5, others=15) == pytest.approx(0.4)
    assert limit.refused(60.0, 60.1, others=15) == pytest.approx(0.9)  # an endpoint that never answers is still tried


def test_a_lower_limit_takes_the_resting_slots_first() -> None:
    async def run() -> None:
        limit = AdaptiveLimit(16)
        gate = Gate(limit, 60)
        for _ in range(16):
            await gate.enter()
        for _ in range(8):
            gate.leave(rest_s=100)
        for _ in range(5):
            limit.refused(0.0, 0.0, others=8)
        for _ in range(8):
            gate.leave()
        assert limit.limit == 8
        for _ in range(8):
            await asyncio.wait_for(gate.enter(), 1)

    asyncio.run(run())


def test_one_decrease_a_window_however_many_calls_fail_at_once() -> None:
    limit = AdaptiveLimit(16)
    for _ in range(16):
        limit.refused(started=0.0, now=1.0, others=0)
    assert limit.limit == 8
    for _ in range(16):  # sent before the decrease
        limit.refused(started=0.5, now=1.5, others=0)
    assert limit.limit == 8


def test_a_pause_holds_all_back_only_where_most_are_refused() -> None:
    limit = AdaptiveLimit(16)
    limit.refused(0.0, 1.0, others=0, retry_after=5)
    assert limit.held_until == 6.0
    limit = AdaptiveLimit(16)
    for _ in range(5):
        limit.answered(0.0, 1.0)
    limit.refused(0.0, 1.0, others=0, retry_after=5)
    assert limit.held_until < 1.0
    for _ in range(5):
        limit.refused(0.0, 1.0, others=0, retry_after=5)
    assert limit.held_until == 6.0


def test_deadlines_one_after_the_other_without_an_answer_are_silence() -> None:
    silence = Silence(most=3, pause_s=10)
    for asked in (0.0, 10.0, 20.0):
        assert not silence.lasts(asked)
        for _ in range(16):  # all that waited together
            silence.timed_out(asked, asked + 10)
    assert silence.lasts(30.0)
    assert silence.lasts(39.9)
    assert not silence.lasts(40.0)
    silence.timed_out(40.0, 50.0)  # it was tried, and is silent still
    assert silence.lasts(50.0)
    silence.broken()
    assert not silence.lasts(50.0)


def test_an_answer_in_between_is_no_silence_and_neither_is_one_pause_of_all() -> None:
    silence = Silence(most=3, pause_s=10)
    for asked in range(0, 100, 10):
        silence.timed_out(asked, asked + 10)
        silence.timed_out(asked, asked + 10)
        if asked % 20:
            silence.broken()
        assert not silence.lasts(asked + 10)
    for _ in range(64):
        silence.timed_out(100.0, 110.0)
    assert not silence.lasts(110.0)


def test_the_gate_bounds_calls_and_lets_returning_ones_go_first() -> None:
    async def run() -> list[str]:
        gate = Gate(AdaptiveLimit(2), 60)
        order: list[str] = []

        async def one(name: str, again: bool = False) -> None:
            await gate.enter(again)
            order.append(name)

        await one("a")
        await one("b")
        waiting = [asyncio.create_task(one(name, name == "again")) for name in ("c", "d", "again", "cancelled")]
        await asyncio.sleep(0)
        waiting.pop().cancel()
        await asyncio.sleep(0.01)
        assert order == ["a", "b"]
        gate.leave()
        gate.leave(rest_s=0.05)
        await asyncio.sleep(0.01)
        assert order == ["a", "b", "again"]
        await asyncio.sleep(0.1)
        assert order == ["a", "b", "again", "c"]
        gate.leave()
        await asyncio.gather(*waiting)
        return order

    assert asyncio.run(run()) == ["a", "b", "again", "c", "d"]


def test_a_slot_that_was_given_and_cancelled_at_once_is_not_lost() -> None:
    async def run() -> None:
        gate = Gate(AdaptiveLimit(1), 60)
        await gate.enter()
        task = asyncio.create_task(gate.enter())
        await asyncio.sleep(0)
        gate.leave()  # the waiting task has its slot now, but has not run
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gate.enter(), 1)

    asyncio.run(run())


def test_nobody_waits_longer_than_the_longest_hold() -> None:
    async def run() -> None:
        limit = AdaptiveLimit(1)
        gate = Gate(limit, longest_hold_s=5)
        await gate.enter()
        waiting = asyncio.create_task(gate.enter())
        await asyncio.sleep(0)
        now = asyncio.get_running_loop().time()
        limit.refused(now, now, others=0, retry_after=600)
        gate.leave()
        for question in (waiting, gate.enter()):
            with pytest.raises(HeldBack, match="pause"):
                await question

    asyncio.run(run())
