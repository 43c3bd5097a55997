"""The real client against an endpoint that is simulated on a virtual clock, so that a throughput can be asserted.

Contract: `run` asks the questions of one `OpenAIChat`, all of whose parts are real but the call itself, on an event loop
on which nothing waits: where all tasks sleep, the clock jumps to the first that wakes. The endpoint behaves as `OpenAIServer`
does: `capacity` calls at once, more are refused, faults by its script. No figure depends on the machine.
"""

import asyncio
import random
import selectors
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from dream_ray.chat.openai_chat import Load, OpenAIChat, _Failure
from dream_ray.chat.protocol import ChatReply, ChatRequest, Task
from tests.chat.openai_server import Fault, Script, _completion

WIRE_S = 0.005
"""What a call is on its way."""


class _Jumps(selectors.SelectSelector):
    """Where the loop would sleep, the time has passed already."""

    slept = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "all tasks wait and nothing will wake one"
            self.slept += max(0.0, timeout)
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumps = _Jumps()
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._jumps.slept


@dataclass
class VirtualEndpoint:
    """See the module's contract. A call takes `latency_s`, up to the share `spread` of it more or less."""

    script: Script
    latency_s: float = 2.0
    spread: float = 0.3
    capacity: int = 32
    calls: Counter[int] = field(default_factory=Counter)
    served: int = 0
    delivered: Counter[int] = field(default_factory=Counter)
    refused: int = 0
    at_once: int = 0

    def begins(self, now: float) -> None:
        """It works on one more call."""

    async def call(self, question: int) -> ChatCompletion | _Failure:
        """How a call ends."""
        await asyncio.sleep(WIRE_S)
        earlier = self.calls[question]
        self.calls[question] += 1
        fault = self.script(question, earlier)
        if self.at_once >= self.capacity:
            self.refused += 1
            fault = Fault.RATE_LIMITED
        match fault:
            case Fault.RATE_LIMITED:
                return _Failure("http_429", "", again=True, load=Load.REFUSED, retry_after=0.2)
            case Fault.SERVER_ERROR | Fault.RESET:
                return _Failure(fault.name.lower(), "", again=True, load=Load.BROKE)
            case Fault.UNKNOWN_MODEL:
                return _Failure("http_404", "")
        self.at_once += 1
        self.begins(asyncio.get_running_loop().time())
        share = random.Random(f"{question}-{earlier}").uniform(-1, 1)
        await asyncio.sleep(self.latency_s * (1 + self.spread * share))
        self.at_once -= 1
        self.served += 1
        match fault:
            case Fault.CUT_BODY:
                return _Failure("connection_failed", "", again=True, load=Load.BROKE)
            case Fault.CUT_JSON:
                return _Failure("reply_malformed", "", again=True)
        self.delivered[question] += 1
        return ChatCompletion.model_validate(
            _completion(fault, question, {"model": "judge", "response_format": {}}, None)
        )


def run(chat: OpenAIChat, endpoint: VirtualEndpoint, questions: int) -> tuple[list[ChatReply], float]:
    """All replies to questions that are asked at once, and the seconds until the last."""

    async def call(arguments: dict[str, Any], _: float) -> ChatCompletion | _Failure:
        return await endpoint.call(int(arguments["messages"][0]["content"]))

    async def ask_all() -> list[ChatReply]:
        requests = [ChatRequest(Task.SCORE, {"text": str(number)}) for number in range(questions)]
        return await asyncio.gather(*(chat.ask(request) for request in requests))

    async def at_once(work: Any, *arguments: Any) -> Any:
        return work(*arguments)

    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        loop = runner.get_loop()
        patch.setattr("time.monotonic", loop.time)
        patch.setattr(chat, "_send", call)
        patch.setattr(chat, "_messages", lambda request: [{"role": "user", "content": request.fields["text"]}])
        patch.setattr("asyncio.to_thread", at_once)  # a thread would take real time
        return runner.run(ask_all()), loop.time()
