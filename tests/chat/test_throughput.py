"""How much of an endpoint the client uses, on a virtual clock: no figure here depends on the machine."""

import random
import statistics
from collections import Counter

import pytest

from benchmarks.chat_throughput import FAULTS, ceilings, client, main
from dream_ray.chat.parse import parse_score
from tests.chat.openai_server import Fault, Script, always, at_random, right
from tests.chat.virtual_endpoint import VirtualEndpoint, run

QUESTIONS, CAPACITY, SEEDS = 500, 32, 9
NOWHERE = "http://127.0.0.1:1/v1"


def rates(
    script: Script, fixed: int | None = None, spread: float = 0.3, seed: int = 0
) -> tuple[float, float, VirtualEndpoint]:
    """Ended questions and served calls per second; what is asked ends right or with a reason, and is answered once."""
    random.seed(seed)  # of the retries' waits
    endpoint = VirtualEndpoint(script, spread=spread, capacity=CAPACITY)
    replies, seconds = run(client(NOWHERE, fixed), endpoint, QUESTIONS)
    for question, reply in enumerate(replies):
        if reply.text is None:
            assert reply.reason in ("http_404", "refused_by_endpoint")
        else:
            assert parse_score(reply.text) == right(question)
    assert max(endpoint.delivered.values()) == 1
    return QUESTIONS / seconds, endpoint.served / seconds, endpoint


def test_a_healthy_endpoint_is_used_as_by_a_client_that_knows_its_bound() -> None:
    ended, _, endpoint = rates(always(Fault.NONE))
    fixed, _, _ = rates(always(Fault.NONE), CAPACITY)
    assert ended > 0.95 * fixed
    assert endpoint.refused < 0.3 * QUESTIONS


@pytest.mark.parametrize("spread", [0.3, 0.0], ids=["times differ", "all calls take the same time"])
def test_under_faults_it_is_used_as_well_as_that_client_uses_a_healthy_one(spread: float) -> None:
    """At least 0.9 of the healthy rate: of the calls served and, where not all calls keep step, of the questions ended."""
    fixed_ended, fixed_served, _ = rates(always(Fault.NONE), CAPACITY, spread)
    ended, served = [], []
    for seed in range(SEEDS):
        questions, calls, _ = rates(at_random(0.3, FAULTS, seed), None, spread, seed)
        ended.append(questions / fixed_ended)
        served.append(calls / fixed_served)
    assert statistics.median(served) > 0.9
    assert statistics.median(ended) > (0.9 if spread else 0.85)
    assert statistics.median(ended) < ceilings(0.3)[1]  # or the arithmetic is wrong


def test_the_bound_is_found_before_the_first_answer() -> None:
    most: Counter[float] = Counter()

    class Watched(VirtualEndpoint):
        def begins(self, now: float) -> None:
            most[round(now, 1)] = max(most[round(now, 1)], self.at_once)

    run(client(NOWHERE, None), Watched(always(Fault.NONE), capacity=CAPACITY), QUESTIONS)
    assert most[0.0] == 16
    assert max(count for at, count in most.items() if at < 1) == CAPACITY


def test_the_benchmark_asks_a_real_server_and_prints_the_ratios(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--questions", "20", "--latency", "0.05", "--repetitions", "1"]
    monkeypatch.setattr("sys.argv", ["chat_throughput", *asked])
    main()
    printed = capsys.readouterr().out
    assert "healthy, ended: median" in printed
    assert "30% faults, served: median" in printed
    assert "lost {}" in printed.splitlines()[0]
