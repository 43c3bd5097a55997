"""The budget as a pure machine, and how long a retry waits."""

import asyncio

from dream_ray.chat.retry import CALM_BACKOFF_S, FIRST_BACKOFF_S, LONGEST_BACKOFF_S, RetryBudget, backoff_s


def longest(retries: int, refused: bool, retry_after: float | None, fails_most: bool) -> float:
    """The longest of many waits; none is shorter than what the endpoint asked for."""
    waits = [backoff_s(retries, refused, retry_after, fails_most) for _ in range(2000)]
    assert min(waits) >= (retry_after or 0)
    return max(waits) - (retry_after or 0)


def near(value: float, most: float) -> bool:
    return 0.98 * most < value <= most


def test_the_budget_is_a_share_of_the_questions() -> None:
    async def taken(budget: RetryBudget, times: int) -> int:
        return sum([await budget.take() for _ in range(times)])

    async def run() -> None:
        budget = RetryBudget(0.5)
        assert await taken(budget, 100) == RetryBudget.AT_START * 0.5
        for _ in range(10):
            budget.asked()
        assert await taken(budget, 6) == 5
        for _ in range(10_000):
            budget.asked()
        assert await taken(budget, 1000) == RetryBudget.AT_MOST * 0.5
        assert not await RetryBudget(0.0).take()

    asyncio.run(run())


def test_a_call_that_broke_by_itself_comes_back_at_once_and_others_later_each_time() -> None:
    assert near(longest(0, False, None, fails_most=False), CALM_BACKOFF_S)
    assert near(longest(3, False, None, fails_most=False), 8 * CALM_BACKOFF_S)
    for refused, fails_most in ((True, False), (True, True), (False, True)):
        assert near(longest(0, refused, None, fails_most), FIRST_BACKOFF_S)
        assert near(longest(3, refused, None, fails_most), 8 * FIRST_BACKOFF_S)
    assert near(longest(20, False, None, fails_most=False), LONGEST_BACKOFF_S)


def test_retry_after_is_the_least_and_says_enough_while_the_endpoint_answers() -> None:
    assert near(longest(3, True, 7.0, fails_most=False), FIRST_BACKOFF_S)
    assert near(longest(3, True, 7.0, fails_most=True), 8 * FIRST_BACKOFF_S)
