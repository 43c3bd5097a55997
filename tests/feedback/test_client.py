"""The client against a real HTTP server that plays a scorer in trouble; the real scorer is in test_scorer.py."""

import asyncio
import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as pa
import pytest

from dream_ray.config import ConfigError, JudgeConfig
from dream_ray.feedback import client
from dream_ray.feedback.client import JudgeActor, authorization
from dream_ray.feedback.wire import MAX_CHARS
from dream_ray.outcomes import struct_of
from dream_ray.records import ErrorRow, Judgement, Observation, Prompt, Rollout, from_row, to_row
from tests.records_for_tests import KNIFE, judgement_of, prompt_of, rollout_of

Answer = Callable[[int, dict[str, Any]], tuple[int, Any]]

SCHEMA = pa.schema(
    [
        pa.field("prompt", struct_of(Prompt)),
        pa.field("observations", pa.list_(struct_of(Observation))),
        pa.field("rollout", struct_of(Rollout)),
        pa.field("error", struct_of(ErrorRow)),
        pa.field("job", pa.string()),
    ]
)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)


@contextmanager
def scorer(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server whose n-th request (from 0) gets `answer(n, body)` as (status, JSON); yields its url and the bodies."""
    bodies: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                number = len(bodies)
                bodies.append(body)
            status, content = answer(number, body)
            if status == 0:  # hang up without a word
                self.connection.close()
                return
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", bodies
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def judged(body: dict[str, Any]) -> dict[str, Any]:
    """What a scorer says when all is well: the reward is the number that the response holds."""
    results = []
    for item in body["items"]:
        rollout = Rollout(item["rollout_id"], item["prompt_id"], "base", 0, 0, "", "stop", 0, 0)
        results.append({"judgement": to_row(judgement_of(rollout, float(item["response"])))})
    return {"results": results}


def table_of(rows: list[tuple[Rollout | None, ErrorRow | None]], prompt: Prompt) -> pa.Table:
    plain = [
        {
            "prompt": to_row(prompt),
            "observations": [to_row(KNIFE)],
            "rollout": rollout and to_row(rollout),
            "error": error and to_row(error),
            "job": "train",
        }
        for rollout, error in rows
    ]
    return pa.Table.from_pylist(plain, schema=SCHEMA)


def run(url: str, table: pa.Table, **config: Any) -> pa.Table:
    async def once() -> pa.Table:
        return await JudgeActor(url, JudgeConfig(**config))(table)

    return asyncio.run(once())


PROMPT = prompt_of("How?")
SAMPLED = [(rollout_of(PROMPT, k, str(k % 3)), None) for k in range(20)]


def test_rows_keep_their_order_and_columns_over_several_requests() -> None:
    passed_by = ErrorRow("rollout", "r", "engine_died", "", 1)
    rows = [*SAMPLED[:9], (None, passed_by), *SAMPLED[9:]]
    table = table_of(rows, PROMPT)
    with scorer(lambda number, body: (200, judged(body))) as (url, bodies):
        out = run(url, table)
    assert sorted(len(body["items"]) for body in bodies) == [4, 8, 8]
    assert bodies[0]["items"][0]["observations"] == [to_row(KNIFE)]
    assert out.column_names == [*SCHEMA.names, "judgement"]
    assert out.drop_columns(["judgement"]).equals(table)
    for (rollout, error), row in zip(rows, out.to_pylist(), strict=True):
        if rollout is None:
            assert from_row(ErrorRow, row["error"]) == error
            assert row["judgement"] is None
        else:
            assert from_row(Judgement, row["judgement"]) == judgement_of(rollout, float(rollout.text))


def test_an_item_without_judgement_becomes_an_error_and_keeps_its_rollout() -> None:
    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        good = judged(body)
        good["results"][1] = {"judgement": None, "reason": "no_score", "detail": "score: hm"}
        return 200, good

    with scorer(answer) as (url, _):
        rows = run(url, table_of(SAMPLED[:3], PROMPT)).to_pylist()
    assert [row["judgement"] is None for row in rows] == [False, True, False]
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert from_row(ErrorRow, rows[1]["error"]) == ErrorRow(
        "judge", SAMPLED[1][0].rollout_id, "no_score", "score: hm", 1
    )
    assert from_row(Rollout, rows[1]["rollout"]) == SAMPLED[1][0]


def test_what_the_judge_was_asked_and_cost_is_in_the_error() -> None:
    told = {
        "attempts": 2,
        "fingerprint": "0123456789ab",
        "prompt_tokens": 30,
        "completion_tokens": 4,
        "cached_tokens": 8,
    }

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        return 200, {
            "results": [{"judgement": None, "reason": "no_score", "detail": "hm"} | told for _ in body["items"]]
        }

    with scorer(answer) as (url, _):
        rows = run(url, table_of(SAMPLED[:1], PROMPT)).to_pylist()
    assert from_row(ErrorRow, rows[0]["error"]) == ErrorRow("judge", SAMPLED[0][0].rollout_id, "no_score", "hm", **told)


@pytest.mark.parametrize("status", [0, 408, 409, 429, 500, 503])
def test_what_may_pass_is_tried_again(status: int) -> None:
    with scorer(lambda number, body: (status, {}) if number < 2 else (200, judged(body))) as (url, bodies):
        rows = run(url, table_of(SAMPLED[:2], PROMPT), attempts=3).to_pylist()
    assert len(bodies) == 3
    assert all(row["error"] is None and row["judgement"] is not None for row in rows)


@pytest.mark.parametrize(("status", "reason"), [(0, "judge_unreachable"), (503, "judge_http_503")])
def test_tries_end(status: int, reason: str) -> None:
    with scorer(lambda number, body: (status, {"detail": "busy"})) as (url, bodies):
        rows = run(url, table_of(SAMPLED[:2], PROMPT), attempts=2).to_pylist()
    assert len(bodies) == 2
    for row, (rollout, _) in zip(rows, SAMPLED, strict=False):
        error = from_row(ErrorRow, row["error"])
        assert (error.stage, error.row_id, error.reason, error.attempts) == ("judge", rollout.rollout_id, reason, 2)
        assert row["judgement"] is None
        assert row["rollout"] is not None


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_what_cannot_pass_is_not_tried_again(status: int) -> None:
    with scorer(lambda number, body: (status, {"detail": "no"})) as (url, bodies):
        rows = run(url, table_of(SAMPLED[:1], PROMPT), attempts=3).to_pylist()
    assert len(bodies) == 1
    assert (rows[0]["error"]["reason"], rows[0]["error"]["attempts"]) == (f"judge_http_{status}", 1)


def test_the_deadline_is_for_the_whole_request() -> None:
    def slow(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.5)
        return 200, judged(body)

    with scorer(slow) as (url, bodies):
        rows = run(url, table_of(SAMPLED[:1], PROMPT), attempts=2, timeout_s=0.1).to_pylist()
        assert (rows[0]["error"]["reason"], rows[0]["error"]["attempts"]) == ("judge_timeout", 2)
        assert len(bodies) == 2


def test_nobody_there() -> None:
    with scorer(lambda number, body: (200, {})) as (url, _):
        pass
    rows = run(url, table_of(SAMPLED[:1], PROMPT), attempts=2).to_pylist()
    assert (rows[0]["error"]["reason"], rows[0]["error"]["attempts"]) == ("judge_unreachable", 2)


def test_a_row_over_the_limits_costs_only_itself() -> None:
    long = rollout_of(PROMPT, 99, "secret " * MAX_CHARS)
    with scorer(lambda number, body: (200, judged(body))) as (url, _):
        rows = run(url, table_of([(long, None), *SAMPLED[:2]], PROMPT)).to_pylist()
    assert rows[0]["error"]["reason"] == "judge_item_over_limits"
    assert "response" in rows[0]["error"]["detail"]
    assert "secret" not in rows[0]["error"]["detail"]
    assert all(row["judgement"] is not None for row in rows[1:])


def test_lost_doubled_and_empty_rows_are_loud() -> None:
    with scorer(lambda number, body: (200, judged(body))) as (url, _):
        with pytest.raises(ValueError, match="doubled"):
            run(url, table_of([SAMPLED[0], SAMPLED[0]], PROMPT))
        with pytest.raises(ValueError, match="nothing to judge"):
            run(url, table_of([(None, None)], PROMPT))

    def swapped(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        good = judged(body)
        good["results"][0]["judgement"]["rollout_id"] = "another"
        return 200, good

    with scorer(swapped) as (url, _), pytest.raises(ValueError, match=r"1 row\(s\) lost"):
        run(url, table_of(SAMPLED[:2], PROMPT))

    def short(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"results": judged(body)["results"][:1]}

    with scorer(short) as (url, _), pytest.raises(ValueError, match="shorter"):
        run(url, table_of(SAMPLED[:2], PROMPT))


def test_a_batch_of_errors_asks_nobody() -> None:
    error = ErrorRow("rollout", "r", "engine_died", "", 1)
    out = run("http://127.0.0.1:9", table_of([(None, error)], PROMPT))
    assert out["judgement"].null_count == 1
    assert out["error"].to_pylist() == [to_row(error)]


def test_the_token_is_read_where_it_is_sent_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    config = JudgeConfig(token_env="SCORER_TOKEN")
    monkeypatch.delenv("SCORER_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="SCORER_TOKEN"):
        JudgeActor("http://127.0.0.1:9", config)
    monkeypatch.setenv("SCORER_TOKEN", "the-value")
    assert authorization("SCORER_TOKEN") == {"authorization": "Bearer the-value"}
    assert b"the-value" not in pickle.dumps(config)
    assert "the-value" not in repr(vars(JudgeActor("http://127.0.0.1:9", config)))
