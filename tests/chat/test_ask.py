import asyncio

import pytest

from dream_ray.chat.ask import all_of, both
from dream_ray.chat.factory import make_chat
from dream_ray.config import RulesConfig
from tests.records_for_tests import SERVICES


def test_all_questions_end_before_a_failure_is_raised() -> None:
    ended = []

    async def question(number: int) -> int:
        await asyncio.sleep(0.01 * number)
        ended.append(number)
        if number == 0:
            raise KeyError(number)
        return number

    async def run() -> list[int]:
        return await all_of([question(number) for number in range(3)])

    with pytest.raises(KeyError):
        asyncio.run(run())
    assert ended == [0, 1, 2]

    async def run_both() -> tuple[int, int]:
        return await both(question(2), question(1))

    assert asyncio.run(run_both()) == (2, 1)


def test_the_rules_backend_says_that_it_is_rules() -> None:
    assert "rules" in make_chat(RulesConfig(), SERVICES).name
