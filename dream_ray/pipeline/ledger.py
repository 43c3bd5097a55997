"""The ledger: what a run pays for its chat models, over all actors and all attempts, and whether the budget is spent.

    <run_dir>/ledger/<attempt>.json    {"paid_usd": {"disentangle": 1.25, "base/judge, policy-0/judge": 3.5}}

Contract: one Ray actor a driver, on the driver's node, that dies with it. Payments arrive without anyone waiting for them
and are on storage at most SAVE_EVERY_S later: a SIGKILL loses the record of those of the last second, never a reply. Each
attempt writes a file of its own and what the run has paid is their sum, so that an actor that outlives its driver by a
moment overwrites nothing. A payment belongs to the stages that are under way when it arrives.
"""

import asyncio
import json
import math
import time
import uuid
from collections import defaultdict
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dream_ray import files
from dream_ray.pipeline.measures import count_paid
from dream_ray.pipeline.payments import paid_before

SAVE_EVERY_S = 1.0
"""Longest time that a payment is in memory only."""
REFRESH_S = 1.0
"""How old an actor's knowledge of what others paid may be."""
BETWEEN = "between stages"
"""Where payments count that belong to no stage: the scorer's health checks."""


ROUNDING_USD = 1e-9
"""Sums of cents are not exact: a budget with less than this left is spent."""


class Ledger:
    """Adds up payments; the content of the actor."""

    def __init__(self, folder_uri: str, budget_usd: float | None):
        self._earlier = sum(paid_before(folder_uri).values())
        self._budget = math.inf if budget_usd is None else budget_usd
        self._uri = files.join(folder_uri, f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}.json")
        self._stage = BETWEEN
        self._paid: dict[str, float] = defaultdict(float)
        self._saving: asyncio.Task[None] | None = None

    async def begin(self, stage: str) -> None:
        """Payments from now on belong to this stage."""
        self._stage = stage

    async def add(self, usd: float) -> None:
        """A payment."""
        self._paid[self._stage] += usd
        count_paid(self._stage, usd)
        if self._saving is None or self._saving.done():
            self._saving = asyncio.create_task(self._save_soon())

    async def end(self) -> float:
        """What this attempt paid for the stage that was begun last; on storage when it is returned."""
        await self._save()
        stage, self._stage = self._stage, BETWEEN
        return self._paid.get(stage, 0.0)

    async def spent(self) -> float:
        """What the run has paid, earlier attempts included."""
        return self._earlier + sum(self._paid.values())

    async def left(self) -> float:
        """What the budget still allows, 0 or less where it is spent, infinity where there is none."""
        return self._budget - await self.spent()

    async def _save_soon(self) -> None:
        await asyncio.sleep(SAVE_EVERY_S)
        await self._save()

    async def _save(self) -> None:
        if self._paid:
            content = json.dumps({"paid_usd": dict(self._paid)}, indent=2).encode()
            await asyncio.to_thread(files.write_atomic, self._uri, content)


class LedgerMeter:
    """The `Meter` of a teacher actor or scorer replica: asks the ledger at most every REFRESH_S and counts its own
    payments in between."""

    def __init__(self, ledger: Any):
        self._ledger = ledger
        self._left = math.inf
        self._sent = 0.0
        self._known_until = -math.inf
        self._refreshing = asyncio.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return (LedgerMeter, (self._ledger,))

    async def exhausted(self) -> bool:
        """True once the run has paid what its budget allows. Raises Ray's error where the ledger is gone."""
        async with self._refreshing:
            if time.monotonic() >= self._known_until:
                before = self._sent
                left = await self._ledger.left.remote()
                # What was paid while the ledger answered is not in its answer.
                self._left = left - (self._sent - before)
                self._known_until = time.monotonic() + REFRESH_S
        return self._left <= ROUNDING_USD

    async def paid(self, usd: float) -> None:
        """Send a payment; nobody waits for its arrival."""
        self._left -= usd
        self._sent += usd
        self._ledger.add.remote(usd)


def start_ledger(folder_uri: str, budget_usd: float | None) -> Any:
    """The actor's handle. It has no name, so that no run finds the ledger of another."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Ledger).options(num_cpus=0, scheduling_strategy=here)
    return actor.remote(folder_uri, budget_usd)
