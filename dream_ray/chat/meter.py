"""Money: what a reply cost, reported as it is paid, and the stop at the budget.

Contract: `cost_usd` is the one formula. `MeteredChat` stands around a paid backend: it reports each reply's cost to the
run's meter and, once the budget is spent, answers every further question with the reason "budget_reached" and no call.
It asks the meter when a question's turn has come, not while it queues: what is spent past the budget is at most what
`at_once` questions cost, and what other actors paid since the meter last heard of them.
"""

import asyncio
from typing import Protocol

from dream_ray.chat.protocol import ChatModel, ChatReply, ChatRequest
from dream_ray.config import PriceConfig

BUDGET_REACHED = "budget_reached"
"""The reason of a question that was not asked because the budget is spent."""


class Meter(Protocol):
    """Who adds up what a run pays, over all its actors; it is pickled to them."""

    async def exhausted(self) -> bool:
        """True once the run has paid what its budget allows."""

    async def paid(self, usd: float) -> None:
        """Add a payment."""


def cost_usd(price: PriceConfig, prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> float:
    """The price of tokens in USD; `cached_tokens` is the part of `prompt_tokens` that the endpoint had cached.

    ((prompt - cached) * price.prompt + cached * price.cached_prompt + completion * price.completion) / 1e6, as the
    endpoints' price lists put it.
    """
    cached_price = price.prompt if price.cached_prompt is None else price.cached_prompt
    fresh = prompt_tokens - cached_tokens
    return (fresh * price.prompt + cached_tokens * cached_price + completion_tokens * price.completion) / 1e6


class MeteredChat:
    """A chat model whose replies cost money, asked at most `at_once` questions at a time."""

    def __init__(self, chat: ChatModel, price: PriceConfig, meter: Meter | None, at_once: int):
        self._chat, self._price, self._meter = chat, price, meter
        self._turns = asyncio.Semaphore(at_once)

    @property
    def name(self) -> str:
        """The model's own name."""
        return self._chat.name

    async def ask(self, request: ChatRequest) -> ChatReply:
        """The model's reply, paid for, unless the budget is spent."""
        if self._meter is None:
            return await self._chat.ask(request)
        async with self._turns:
            if await self._meter.exhausted():
                return ChatReply(None, BUDGET_REACHED, "budget.max_cost_usd is spent", attempts=0)
            reply = await self._chat.ask(request)
            cost = cost_usd(self._price, reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens)
            await self._meter.paid(cost)
        return reply

    def check_alive(self) -> None:
        """Raise what the model itself raises."""
        self._chat.check_alive()
