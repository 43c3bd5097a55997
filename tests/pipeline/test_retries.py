"""One retry budget for all clients of an endpoint, whichever actor they live in."""

import asyncio

import pytest
import ray

from dream_ray.chat.factory import ChatServices, make_chat
from dream_ray.chat.protocol import ChatRequest, Task
from dream_ray.chat.retry import RetryBudget
from dream_ray.config import OpenAIConfig
from dream_ray.pipeline.retries import Accounts, SharedRetries, start_retries
from dream_ray.prompts import load_templates
from tests.chat.openai_server import Fault, OpenAIServer, always

RATIO, EACH = 0.1, 40


def test_each_endpoint_has_an_account_and_a_stage_opens_them_anew() -> None:
    async def taken(accounts: Accounts, endpoint: str) -> int:
        return sum([await accounts.take(endpoint, RATIO) for _ in range(100)])

    async def run() -> None:
        accounts, start = Accounts(), int(RetryBudget.AT_START * RATIO)
        assert [await taken(accounts, name) for name in ("teacher", "judge", "judge")] == [start, start, 0]
        for _ in range(20):
            await accounts.asked("judge", RATIO)
        assert [await taken(accounts, name) for name in ("teacher", "judge")] == [0, 2]
        await accounts.begin()
        assert await taken(accounts, "judge") == start

    asyncio.run(run())


class Asks:
    """What a teacher's actor holds."""

    def __init__(self, config: OpenAIConfig, services: ChatServices):
        self._chat = make_chat(config, services)

    async def ask(self, first: int) -> list[str | None]:
        """Why each question failed."""
        requests = [
            ChatRequest(Task.SCORE, {"text": f"question {n}", "observations": "[]", "response": "No."})
            for n in range(first, first + EACH)
        ]
        return [reply.reason for reply in await asyncio.gather(*(self._chat.ask(request) for request in requests))]


@pytest.mark.slow
def test_actors_share_it_and_one_that_is_started_again_brings_none(cluster: None) -> None:
    """80 questions of two actors, then 40 of one that came later: no more retries than one client had been granted."""
    services = ChatServices(load_templates(), retries=SharedRetries(start_retries()))
    actor = ray.remote(Asks).options(num_cpus=0)
    with OpenAIServer(always(Fault.SERVER_ERROR)) as server:
        config = OpenAIConfig(
            backend="openai", model="m", base_url=server.base_url, api_key_env="", max_retry_ratio=RATIO
        )
        both = [actor.remote(config, services) for _ in range(2)]
        reasons = ray.get([asks.ask.remote(EACH * at) for at, asks in enumerate(both)])
        assert reasons == [["http_500"] * EACH] * 2
        granted = RATIO * (RetryBudget.AT_START + 2 * EACH)
        assert granted - 2 <= len(server.calls) - 2 * EACH <= granted
        ray.kill(both[0])
        late = actor.remote(config, services)
        assert ray.get(late.ask.remote(2 * EACH)) == ["http_500"] * EACH
        assert len(server.calls) - 3 * EACH <= granted + RATIO * EACH
