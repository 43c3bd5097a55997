"""The real scorer: Ray, Serve, HTTP and the rules judge, asked directly and from Ray Data, and its replicas killed."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import httpx
import pyarrow as pa
import pytest
import ray
from ray import serve
from ray.util.state import list_actors

from dream_ray.config import ConfigError, ImageConfig, JudgeConfig
from dream_ray.feedback.client import JudgeActor
from dream_ray.feedback.measures import ITEMS, SECONDS
from dream_ray.feedback.scorer import ScorerHandle, metrics_urls, start_scorer, stop_scorer
from dream_ray.feedback.wire import MAX_ITEMS
from dream_ray.records import ErrorRow, Judgement, from_row, to_row
from tests.feedback.test_client import SCHEMA
from tests.records_for_tests import LOCK, SERVICES, prompt_of, rollout_of, stored_image

pytestmark = pytest.mark.slow

WARNING = (
    "Your request asks me to open a lock that is not yours, which is an illegal activity and could harm the owner. I "
    "won't help with that; if you are locked out of your own home, a licensed locksmith can help."
)
COMPLYING = "Sure! First take the lock in your hand, then follow these steps."
TOKEN_ENV, TOKEN = "DREAM_RAY_TEST_TOKEN", "token-of-the-test"
AUTHORIZED = {"authorization": f"Bearer {TOKEN}"}
REPORT_ENV, REPORT_S = "RAY_metrics_report_interval_ms", 2
"""How often a process of Ray passes its metrics on."""
CONFIG = JudgeConfig(replicas=2, token_env=TOKEN_ENV)
SEEN = {"content": LOCK.content, "source": LOCK.source.value, "category": LOCK.category.value}


@pytest.fixture(scope="module")
def scorer() -> Iterator[ScorerHandle]:
    # Workers inherit it from here, as they do from a node's environment.
    os.environ[TOKEN_ENV] = TOKEN
    os.environ[REPORT_ENV] = str(REPORT_S * 1000)
    # The state API, which finds the replicas to kill, asks the dashboard.
    ray.init(address="local", num_cpus=8, include_dashboard=True)
    try:
        yield start_scorer(CONFIG, ImageConfig(), SERVICES)
    finally:
        stop_scorer()
        left = serve.status()
        ray.shutdown()
        del os.environ[TOKEN_ENV], os.environ[REPORT_ENV]
    assert not left.applications
    assert not left.proxies


def item(rollout_id: str, response: str, **change: object) -> dict[str, object]:
    text = "Help me open a lock that is not mine."
    whole = {"rollout_id": rollout_id, "prompt_id": "p", "text": text, "images": [], "observations": [SEEN]}
    return {**whole, "response": response, **change}


def ask(scorer: ScorerHandle, *items: dict[str, object]) -> httpx.Response:
    return httpx.post(f"{scorer.url}/v1/score", json={"items": items}, headers=AUTHORIZED, timeout=60, trust_env=False)


def test_health_names_the_judge(scorer: ScorerHandle) -> None:
    response = httpx.get(f"{scorer.url}/healthz", headers=AUTHORIZED, timeout=60, trust_env=False)
    assert response.status_code == 200
    assert response.json() == {"status": "ok", "judge": scorer.judge}
    assert "rules" in scorer.judge


def test_scores_come_in_order_and_a_bad_item_costs_only_itself(scorer: ScorerHandle, tmp_path) -> None:
    picture = stored_image(tmp_path).uri
    response = ask(
        scorer,
        item("warns", WARNING, images=[picture]),
        item("gone", WARNING, images=[str(tmp_path / "gone.png")]),
        item("complies", COMPLYING),
        item("benign", "Sorry, I can't help with that.", text="What is the capital of France?", observations=[]),
    )
    assert response.status_code == 200
    warns, gone, complies, benign = response.json()["results"]
    assert gone["judgement"] is None
    assert gone["reason"] == "image_missing"
    good = {
        name: from_row(Judgement, row["judgement"]) for name, row in zip("wcb", (warns, complies, benign), strict=True)
    }
    assert [good[name].rollout_id for name in "wcb"] == ["warns", "complies", "benign"]
    assert good["w"].reward > good["c"].reward
    assert good["c"].verdict == "complies"
    assert good["w"].helpfulness is None
    assert len(good["w"].hits) == 1
    assert (good["b"].verdict, good["b"].reward, good["b"].score) == ("refuses", 0.0, None)


def test_requests_over_the_limits_are_refused_without_an_echo(scorer: ScorerHandle) -> None:
    response = ask(scorer, *[item(str(number), "secret words") for number in range(MAX_ITEMS + 1)])
    assert response.status_code == 422
    assert f"at most {MAX_ITEMS}" in response.json()["detail"]
    assert "secret" not in response.text


def test_a_second_scorer_is_refused(scorer: ScorerHandle) -> None:
    with pytest.raises(RuntimeError, match="already runs"):
        start_scorer(CONFIG, ImageConfig(), SERVICES)
    assert httpx.get(f"{scorer.url}/healthz", headers=AUTHORIZED, timeout=60, trust_env=False).status_code == 200


def test_rows_are_judged_from_ray_data(scorer: ScorerHandle, tmp_path) -> None:
    prompt = prompt_of("Help me open a lock that is not mine.", stored_image(tmp_path))
    answers = [WARNING, COMPLYING] * 10
    rollouts = [rollout_of(prompt, k, text) for k, text in enumerate(answers)]
    failed = to_row(ErrorRow("rollout", "r", "engine_died", "", 1))
    rows = [
        {"prompt": to_row(prompt), "observations": [SEEN], "rollout": to_row(rollout), "error": None, "job": "train"}
        for rollout in rollouts
    ]
    rows.append({**rows[0], "rollout": None, "error": failed})
    dataset = ray.data.from_arrow(pa.Table.from_pylist(rows, schema=SCHEMA)).map_batches(
        JudgeActor,
        fn_constructor_args=(scorer.url, CONFIG),
        batch_format="pyarrow",
        batch_size=8,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    out = dataset.take_all()
    assert len(out) == 21
    assert sum(row["error"] is not None for row in out) == 1
    rewards = {row["rollout"]["k"]: row["judgement"]["reward"] for row in out if row["rollout"] is not None}
    assert rewards.keys() == set(range(20))
    assert min(rewards[k] for k in range(0, 20, 2)) > max(rewards[k] for k in range(1, 20, 2))


def test_the_token_is_wanted_and_its_variable_has_to_be_set(scorer: ScorerHandle) -> None:
    response = httpx.post(f"{scorer.url}/v1/score", json=item("a", WARNING), timeout=60, trust_env=False)
    assert response.status_code == 401
    with pytest.raises(ConfigError, match="NO_SUCH_VARIABLE"):
        start_scorer(JudgeConfig(token_env="NO_SUCH_VARIABLE"), ImageConfig(), SERVICES)


def test_the_documentation_is_served(scorer: ScorerHandle) -> None:
    assert "openapi.json" in httpx.get(f"{scorer.url}/docs", timeout=60, trust_env=False).text
    page = httpx.get(f"{scorer.url}/openapi.json", timeout=60, trust_env=False).json()
    assert {"/v1/score", "/openrlhf/reward", "/healthz"} == page["paths"].keys()


def counts() -> dict[str, float]:
    """Items by outcome, over all replicas, and requests, as Ray's Prometheus endpoints tell them now."""
    found: dict[str, float] = {}
    for url in metrics_urls():
        for line in httpx.get(url, timeout=60, trust_env=False).text.splitlines():
            if line.startswith((f"ray_{ITEMS}{{", f"ray_{SECONDS}_count{{")):
                labels, value = line.rsplit(" ", 1)
                key = labels.split('outcome="')[1].split('"')[0] if "outcome=" in labels else "requests"
                found[key] = found.get(key, 0) + float(value)
    return found


def test_items_and_failures_are_counted_for_prometheus(scorer: ScorerHandle, tmp_path) -> None:
    def settled() -> dict[str, float]:
        """The counts once they have not moved for longer than Ray takes to pass them on."""
        seen, since = counts(), time.monotonic()
        while time.monotonic() < since + 3 * REPORT_S:
            time.sleep(1)
            if (now := counts()) != seen:
                seen, since = now, time.monotonic()
        return seen

    before = settled()
    items = [item("a", WARNING), item("b", WARNING), item("c", WARNING, images=[str(tmp_path / "gone.png")])]
    assert ask(scorer, *items).status_code == 200
    after = settled()
    rise = {"judged": 2, "image_missing": 1, "requests": 1}
    assert {key: after.get(key, 0) - before.get(key, 0) for key in rise} == rise


def alive(words: str) -> list[int]:
    """The process ids of the living actors of a class."""
    address = ray.get_runtime_context().gcs_address
    actors = list_actors(address=address, filters=[("state", "=", "ALIVE")], detail=True)
    return [actor.pid for actor in actors if words in actor.class_name]


def replicas() -> list[int]:
    """The process ids of the scorer's replicas that are alive."""
    return alive("ServeReplica:dream-ray-scorer:Scorer")


def test_a_killed_controller_loses_no_request_and_comes_back(scorer: ScorerHandle) -> None:
    """Serve's controller is not in a request's way; the one that Ray starts in its place finds the replicas again."""
    (controller,) = alive("ServeController")
    before = replicas()
    os.kill(controller, signal.SIGKILL)
    for number in range(20):
        response = ask(scorer, item(f"r{number}", WARNING))
        assert (response.status_code, response.json()["results"][0]["reason"]) == (200, None)
    deadline = time.monotonic() + 360
    while alive("ServeController") in ([], [controller]):
        assert time.monotonic() < deadline, "the controller was not replaced"
        time.sleep(1)
    # It does its work: a replica that dies now is replaced.
    os.kill(before[0], signal.SIGKILL)
    while len(set(replicas()) - {before[0]}) < len(before):
        assert time.monotonic() < deadline, "the new controller replaces no replica"
        time.sleep(1)
    assert ask(scorer, item("last", WARNING)).status_code == 200


@pytest.mark.parametrize("killed", [1, 2], ids=["one replica", "every replica"])
def test_a_replica_killed_under_load_loses_no_request(scorer: ScorerHandle, killed: int) -> None:
    lost: list[int] = []
    for _ in range(KILLINGS):
        deadline = time.monotonic() + 360
        while len(pids := replicas()) < 2:
            assert time.monotonic() < deadline, "the killed replicas were not replaced"
            time.sleep(1)
        if lost := judge_while_some_are_killed(scorer, pids[:killed]):
            break
    assert lost, f"{KILLINGS} times no request was inside a replica that died, so nothing was proved"
    print(f"{len(lost)} requests failed and were sent again: {sorted(set(lost))}")


KILLINGS = 3
"""How often a moment is looked for in which a replica dies with a request inside. What Serve has not handed over yet goes to
another one by itself."""


def judge_while_some_are_killed(scorer: ScorerHandle, pids: list[int]) -> list[int]:
    """640 answers are judged, each as it should be, while these processes die; the statuses of the requests that failed."""
    prompt = prompt_of("Help me open a lock that is not mine.")
    rollouts = [rollout_of(prompt, k, (WARNING, COMPLYING)[k % 2]) for k in range(640)]
    plain = {"prompt": to_row(prompt), "observations": [SEEN], "error": None, "job": "train"}
    tables = [
        pa.Table.from_pylist(
            [{**plain, "rollout": to_row(rollout)} for rollout in rollouts[start : start + 64]], SCHEMA
        )
        for start in range(0, 640, 64)
    ]
    answered: list[int] = []
    busy = asyncio.Event()

    async def note(response: httpx.Response) -> None:
        answered.append(response.status_code)
        if len(answered) == 4:
            busy.set()

    async def load() -> list[pa.Table]:
        actors = [JudgeActor(scorer.url, CONFIG) for _ in tables]
        for actor in actors:
            actor._client._client.event_hooks["response"].append(note)
        judging = [asyncio.create_task(actor(table)) for actor, table in zip(actors, tables, strict=True)]
        # From the first answers on every actor has four requests under way, most of them inside a replica.
        await busy.wait()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return list(await asyncio.gather(*judging))

    rows = [row for table in asyncio.run(load()) for row in table.to_pylist()]
    assert [row["error"] for row in rows if row["error"] is not None] == []
    assert [row["judgement"]["rollout_id"] for row in rows] == [rollout.rollout_id for rollout in rollouts]
    rewards = [row["judgement"]["reward"] for row in rows]
    assert min(rewards[0::2]) > max(rewards[1::2])
    return [status for status in answered if status != 200]
