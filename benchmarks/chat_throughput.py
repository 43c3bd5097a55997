"""What finding an endpoint's bound by itself costs the client, and what faults cost it.

Contract: asks the same questions of the same local server (real HTTP, about the same time per call, more than `capacity` at
once are refused with 429 and Retry-After) in turn in one run: with the client held at the best fixed concurrency, the server's
capacity; with the adaptive client; and with the adaptive client while a share of the calls fails at random. Prints the
ratios of the last two to the first, the median and the spread. Run it from the repository's root:
python -m benchmarks.chat_throughput

Under faults three ratios are printed, for they mean three things:

- answers per second, of those to the questions that got one;
- questions ended per second, be it with an answer or with None and a reason that no retry mends;
- calls served to the end per second, of those that the server was busy with: refusals and cut replies take its time, too.

No client can bring the first to 1. Of each call `f` ends in one of n faults; the server is busy to the end with those without
a fault and with cut bodies, cut JSON, refusals, prose and other models' names; only those without a fault, prose and other
names are answers. At full use of the server answers are (1 - f + 2 f/n) / (1 - f + 5 f/n) of the healthy rate, for
f = 0.3 and n = 9 that is 0.885, and ended questions (1 - f + 4 f/n) / (1 - f + 5 f/n), 0.962. `ceilings` computes both.
"""

import argparse
import asyncio
import statistics
import time
from collections import Counter
from dataclasses import dataclass

from dream_ray.chat.concurrency import AdaptiveLimit, Gate
from dream_ray.chat.openai_chat import OpenAIChat
from dream_ray.chat.protocol import ChatReply, ChatRequest, Task
from dream_ray.config import OpenAIConfig
from dream_ray.prompts import load_templates
from tests.chat.openai_server import Fault, OpenAIServer, Script, always, at_random

FAULTS = [Fault.RATE_LIMITED, Fault.SERVER_ERROR, Fault.CUT_BODY, Fault.CUT_JSON, Fault.REFUSAL, Fault.PROSE]
FAULTS += [Fault.RESET, Fault.OTHER_MODEL, Fault.UNKNOWN_MODEL]
"""All but calls without a reply: the last of those lasts until its deadline, whatever the client does."""
ANSWERED = {Fault.PROSE, Fault.OTHER_MODEL}
"""Come with a right answer all the same."""
FINAL = {Fault.REFUSAL, Fault.UNKNOWN_MODEL}
"""End the question without an answer."""
SERVED = {*ANSWERED, Fault.REFUSAL, Fault.CUT_BODY, Fault.CUT_JSON}
"""Take the server as long as an answer."""


class FixedLimit(AdaptiveLimit):
    """The hand-tuned limit: stays where it is put."""

    @property
    def limit(self) -> int:
        """The maximum, always."""
        return round(self._maximum)


def client(base_url: str, fixed: int | None) -> OpenAIChat:
    """The client with its defaults, or held at `fixed` calls."""
    config = OpenAIConfig(backend="openai", model="judge", base_url=base_url, api_key_env="")
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


@dataclass(frozen=True)
class Rates:
    """What one run came to, per second: see the module's contract. `refused`: calls without room at the server."""

    answers: float
    ended: float
    served: float
    refused: int
    lost: Counter[str]


def ceilings(share: float) -> tuple[float, float]:
    """Answers, and ended questions, that a server at full use gives while `share` of its calls end in FAULTS, to one
    without faults."""
    each = share / len(FAULTS)
    served = 1 - share + len(SERVED) * each
    answered = 1 - share + len(ANSWERED) * each
    return answered / served, (answered + len(FINAL) * each) / served


def measure(arguments: argparse.Namespace, script: Script, fixed: int | None) -> Rates:
    """Ask all questions once."""
    with OpenAIServer(
        script, latency_s=arguments.latency, spread=arguments.spread, capacity=arguments.capacity
    ) as server:
        chat = client(server.base_url, fixed)
        started = time.perf_counter()
        replies = asyncio.run(ask_all(chat, arguments.questions))
        took = time.perf_counter() - started
        return Rates(
            answers=sum(reply.text is not None for reply in replies) / took,
            ended=len(replies) / took,
            served=server.served / took,
            refused=server.refused,
            lost=Counter(reply.reason for reply in replies if reply.reason),
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--latency", type=float, default=2.0, help="seconds that the server takes for a call")
    parser.add_argument("--spread", type=float, default=0.3, help="share of that by which calls take more or less")
    parser.add_argument("--capacity", type=int, default=32, help="calls that the server bears at once")
    parser.add_argument("--faults", type=float, default=0.3, help="share of calls that fail in the last part")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    healthy = always(Fault.NONE)
    measure(argparse.Namespace(**{**vars(arguments), "questions": 20}), healthy, None)  # imports and caches
    ratios: dict[str, list[float]] = {}
    for repetition in range(arguments.repetitions):
        fixed = measure(arguments, healthy, arguments.capacity)
        print(f"{repetition}: fixed, healthy: {fixed.answers:.1f} answers/s; lost {dict(fixed.lost)}", flush=True)
        faulty = at_random(arguments.faults, FAULTS, seed=repetition)
        for name, script in (("healthy", healthy), (f"{arguments.faults:.0%} faults", faulty)):
            run = measure(arguments, script, None)
            found = {kind: getattr(run, kind) / getattr(fixed, kind) for kind in ("answers", "ended", "served")}
            for kind, ratio in found.items():
                ratios.setdefault(f"{name}, {kind}", []).append(ratio)
            shown = ", ".join(f"{kind} {ratio:.3f}" for kind, ratio in found.items())
            print(
                f"{repetition}: adaptive, {name}: {shown} of that; no room {run.refused}, lost {dict(run.lost)}",
                flush=True,
            )
    for name, values in ratios.items():
        print(f"{name}: median {statistics.median(values):.3f}, from {min(values):.3f} to {max(values):.3f}")
    answers, ended = ceilings(arguments.faults)
    print(f"at full use of the server under {arguments.faults:.0%} faults: answers {answers:.3f}, ended {ended:.3f}")


if __name__ == "__main__":
    main()
