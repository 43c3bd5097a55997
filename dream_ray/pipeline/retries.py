"""One retry budget a stage, whichever actors and replicas its questions come from.

Contract: one Ray actor a driver, on the driver's node, that dies with it, with an account for each endpoint that is asked;
`begin` opens them anew for the next stage. Clients pay in and take out by a message, so that an actor that Ray adds, or
starts again, finds the account as it is and brings no retries of its own. Nobody waits for a payment to arrive; a retry, which
is rare, waits for its answer, about a millisecond. Should the budget's own process die, Ray starts it again with new accounts.
"""

from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dream_ray.chat.retry import RetryBudget


class Accounts:
    """Retry budgets by endpoint; the content of the actor."""

    def __init__(self) -> None:
        self._budgets: dict[str, RetryBudget] = {}

    async def begin(self) -> None:
        """A stage begins."""
        self._budgets.clear()

    async def asked(self, endpoint: str, ratio: float) -> None:
        """A question was asked for the first time."""
        self._of(endpoint, ratio).asked()

    async def take(self, endpoint: str, ratio: float) -> bool:
        """True where one more retry may be made; it is then spent."""
        return await self._of(endpoint, ratio).take()

    def _of(self, endpoint: str, ratio: float) -> RetryBudget:
        return self._budgets.setdefault(endpoint, RetryBudget(ratio))


@dataclass(frozen=True)
class SharedBudget:
    """The `Budget` of a client: its endpoint's account at the actor."""

    actor: Any
    endpoint: str
    ratio: float

    def asked(self) -> None:
        """Say so; nobody waits for its arrival."""
        self.actor.asked.remote(self.endpoint, self.ratio)

    async def take(self) -> bool:
        """True where one more retry may be made; it is then spent."""
        return bool(await self.actor.take.remote(self.endpoint, self.ratio))


@dataclass(frozen=True)
class SharedRetries:
    """The `Retries` of a run."""

    actor: Any

    def budget(self, endpoint: str, ratio: float) -> SharedBudget:
        """The endpoint's account."""
        return SharedBudget(self.actor, endpoint, ratio)


def start_retries() -> Any:
    """The actor's handle. It has no name, so that no run finds that of another."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Accounts).options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1)
    return actor.remote()
