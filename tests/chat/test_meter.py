"""What replies cost, and the stop at the budget."""

import asyncio
from dataclasses import dataclass, field

import pytest

from dream_ray.chat.meter import BUDGET_REACHED, MeteredChat, cost_usd
from dream_ray.chat.protocol import ChatReply, ChatRequest, Task
from dream_ray.config import PriceConfig
from tests.scripted import ScriptedChat

PRICE = PriceConfig(prompt=2.0, completion=10.0)
QUESTION = ChatRequest(Task.VERIFY, {"content": "a", "category": "Privacy"})


@dataclass
class Purse:
    """A meter in this process."""

    budget: float
    payments: list[float] = field(default_factory=list)

    async def exhausted(self) -> bool:
        return sum(self.payments) >= self.budget

    async def paid(self, usd: float) -> None:
        self.payments.append(usd)


def test_the_price_of_tokens() -> None:
    assert cost_usd(PRICE, 1_000_000, 0, 0) == pytest.approx(2)
    assert cost_usd(PRICE, 0, 1_000_000, 0) == pytest.approx(10)
    assert cost_usd(PRICE, 1_000_000, 0, 400_000) == pytest.approx(2)
    cheaper = PriceConfig(prompt=2.0, completion=10.0, cached_prompt=0.5)
    assert cost_usd(cheaper, 1_000_000, 100_000, 400_000) == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 1)
    assert cost_usd(PriceConfig(prompt=2.0, cached_prompt=0.0), 1_000_000, 0, 1_000_000) == 0


def test_failed_replies_are_paid_for_too() -> None:
    purse = Purse(budget=1)
    truncated = ChatReply(None, "truncated", prompt_tokens=1000, completion_tokens=100)
    chat = MeteredChat(ScriptedChat(lambda request, earlier: truncated), PRICE, purse, 4)
    assert asyncio.run(chat.ask(QUESTION)) == truncated
    assert purse.payments == [pytest.approx(0.003)]


class Slow:
    """Replies after a moment at a cent each."""

    name = "slow"

    def __init__(self) -> None:
        self.calls = 0

    async def ask(self, request: ChatRequest) -> ChatReply:
        self.calls += 1
        await asyncio.sleep(0.001)
        return ChatReply("Yes", prompt_tokens=5000)


@pytest.mark.parametrize("at_once", [1, 8])
def test_the_budget_stops_questions_that_wait_their_turn(at_once: int) -> None:
    """All 200 are asked at the same moment; what is spent past the budget is what was under way."""
    model, purse = Slow(), Purse(budget=0.2)
    chat = MeteredChat(model, PRICE, purse, at_once)

    async def all_at_once() -> list[ChatReply]:
        return await asyncio.gather(*(chat.ask(QUESTION) for _ in range(200)))

    replies = asyncio.run(all_at_once())
    stopped = [reply for reply in replies if reply.reason == BUDGET_REACHED]
    assert 20 <= model.calls <= 20 + at_once
    assert len(stopped) == 200 - model.calls
    assert {(reply.text, reply.attempts, reply.prompt_tokens) for reply in stopped} == {(None, 0, 0)}
    assert sum(purse.payments) == pytest.approx(model.calls * 0.01)


def test_without_a_meter_nothing_is_counted() -> None:
    chat = MeteredChat(Slow(), PRICE, None, 1)
    assert chat.name == "slow"
    assert asyncio.run(chat.ask(QUESTION)).text == "Yes"
