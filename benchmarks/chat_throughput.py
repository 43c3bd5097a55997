"""What finding an endpoint's bound by itself costs the client, and what faults cost it.

Contract: asks the same questions of the same local server (real HTTP, a fixed time per call, more than `capacity` at once are
refused with 429 and Retry-After) with the adaptive client and with the same client held at the best fixed concurrency,
the server's capacity, in turn in one run, and prints each ratio of answered questions per second, the median and the
spread. Then the adaptive client against the server with a share of its calls failing at random. Run it from the
repository's root: python -m benchmarks.chat_throughput
"""

import argparse
import asyncio
import statistics
import time
from collections import Counter

from dream_ray.chat.concurrency import AdaptiveLimit, Gate
from dream_ray.chat.openai_chat import OpenAIChat
from dream_ray.chat.protocol import ChatReply, ChatRequest, Task
from dream_ray.config import OpenAIConfig
from dream_ray.prompts import load_templates
from tests.chat.openai_server import Fault, OpenAIServer, Script, always, at_random

FAULTS = [Fault.RATE_LIMITED, Fault.SERVER_ERROR, Fault.CUT_BODY, Fault.CUT_JSON, Fault.REFUSAL, Fault.PROSE]
FAULTS += [Fault.RESET, Fault.OTHER_MODEL, Fault.UNKNOWN_MODEL]
"""All but calls without a reply: the last of those lasts until its deadline, whatever the client does."""


class FixedLimit(AdaptiveLimit):
    """The hand-tuned limit: stays where it is put."""

    @property
    def limit(self) -> int:
        """The maximum, always."""
        return round(self._maximum)


def client(server: OpenAIServer, fixed: int | None) -> OpenAIChat:
    """The client with its defaults, or held at `fixed` calls."""
    config = OpenAIConfig(backend="openai", model="judge", base_url=server.base_url, api_key_env="")
    chat = OpenAIChat(config, load_templates())
    if fixed is not None:
        chat._limit = FixedLimit(fixed)
        chat._gate = Gate(chat._limit, config.timeout_s)
    return chat


async def ask_all(chat: OpenAIChat, questions: int) -> list[ChatReply]:
    """All replies to questions that are asked at once, as a stage does."""
    fields = {"observations": "[]", "response": "Better ask a locksmith."}
    requests = [ChatRequest(Task.SCORE, {**fields, "text": f"question {n}"}) for n in range(questions)]
    replies = await asyncio.gather(*(chat.ask(request) for request in requests))
    await chat._client.close()
    return replies


def measure(arguments: argparse.Namespace, script: Script, fixed: int | None) -> tuple[float, Counter[str], int]:
    """Answers per second, the reasons of the others, and the calls that the server refused for lack of room."""
    with OpenAIServer(script, arguments.latency, arguments.capacity) as server:
        chat = client(server, fixed)
        started = time.perf_counter()
        replies = asyncio.run(ask_all(chat, arguments.questions))
        took = time.perf_counter() - started
        reasons = Counter(reply.reason for reply in replies if reply.reason)
        return sum(reply.text is not None for reply in replies) / took, reasons, server.refused


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--latency", type=float, default=2.0, help="seconds that the server takes for a call")
    parser.add_argument("--capacity", type=int, default=32, help="calls that the server bears at once")
    parser.add_argument("--faults", type=float, default=0.3, help="share of calls that fail in the last part")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    healthy = always(Fault.NONE)
    measure(argparse.Namespace(**{**vars(arguments), "questions": 20}), healthy, None)  # imports and caches
    ratios, fixed_rates = [], []
    for repetition in range(arguments.repetitions):
        fixed, lost_fixed, _ = measure(arguments, healthy, arguments.capacity)
        adaptive, lost, refused = measure(arguments, healthy, None)
        ratios.append(adaptive / fixed)
        fixed_rates.append(fixed)
        print(
            f"{repetition}: adaptive {adaptive:.1f}/s, fixed {fixed:.1f}/s, ratio {ratios[-1]:.3f}; "
            f"refused for lack of room {refused}, lost {dict(lost)} and {dict(lost_fixed)}",
            flush=True,
        )
    print(f"ratio: median {statistics.median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")
    for repetition in range(arguments.repetitions):
        rate, lost, refused = measure(arguments, at_random(arguments.faults, FAULTS, seed=repetition), None)
        print(
            f"{arguments.faults:.0%} faults, {repetition}: {rate:.1f} answers/s, "
            f"{rate / statistics.median(fixed_rates):.3f} of fixed and healthy; refused for lack of room {refused}, "
            f"lost {dict(lost)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
