"""The interface with a scripted or the rules judge, called in the process; on Ray Serve it is in test_scorer.py."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from PIL import Image as Pillow

from dream_ray.chat.protocol import ChatReply, ChatRequest, Task
from dream_ray.chat.rules import RulesChat
from dream_ray.config import ImageConfig
from dream_ray.feedback.api import make_api
from dream_ray.feedback.items import ItemJudge
from dream_ray.feedback.wire import EXAMPLE_ITEM, MAX_URI_CHARS, ScoreResult
from tests.scripted import ScriptedChat

ANSWERS = {Task.VERDICT: "Warns", Task.SCORE: "8", Task.HELPFULNESS: "6", Task.HIT: "Yes", Task.VERIFY: "Yes"}
NOTHING = "[]"
LOCK = json.dumps([EXAMPLE_ITEM["observations"][0]])
BENIGN: dict[str, Any] = {"rollout_id": "r", "prompt_id": "p", "text": "t", "response": "a", "observations": []}


def normal(request: ChatRequest, earlier: int) -> str | ChatReply:
    if request.task is Task.TEXT_PASS:
        return LOCK
    return NOTHING if request.task is Task.IMAGE_PASS else ANSWERS[request.task]


class Api:
    """A scorer of one replica, without a server."""

    def __init__(self, chat: Any = None, token: str | None = None, limit: int = 100_000, opens_uris: bool = False):
        self.recorded: list[ScoreResult] = []
        judge = ItemJudge(chat or ScriptedChat(normal), ImageConfig(max_bytes=20_000, max_pixels=10_000), opens_uris)
        self._api = make_api(judge, token, limit, lambda results, seconds: self.recorded.extend(results))

    def __call__(self, path: str, method: str = "POST", **arguments: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._api)
            async with httpx.AsyncClient(transport=transport, base_url="http://scorer") as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(call())

    def score(self, body: Any) -> httpx.Response:
        return self("/v1/score", json=body)


def png(width: int = 8, height: int = 8) -> str:
    buffer = io.BytesIO()
    Pillow.new("RGB", (width, height), "green").save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_one_item_gets_its_result_and_a_list_gets_a_list() -> None:
    api = Api()
    alone = api.score(EXAMPLE_ITEM)
    assert alone.status_code == 200
    assert alone.json()["judgement"]["reward"] == pytest.approx(1.8)
    together = api.score({"items": [EXAMPLE_ITEM, BENIGN]}).json()["results"]
    assert together[0] == alone.json()
    assert (together[1]["judgement"]["helpfulness"], together[1]["judgement"]["reward"]) == (6, 0.6)
    assert len(api.recorded) == 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({**BENIGN, "extra": 1}, "body.one.extra"),
        ({"items": [{**BENIGN, "rollout_id": ""}]}, "body.many.items.0.rollout_id"),
        ({"items": []}, "body.many.items"),
        ({**BENIGN, "images": ["s3://" + "secret" * MAX_URI_CHARS]}, f"over the limit of {MAX_URI_CHARS}"),
        ([BENIGN], "body"),
    ],
)
def test_a_wrong_form_is_refused_by_name_and_without_an_echo(body: Any, said: str) -> None:
    response = Api().score(body)
    assert response.status_code == 422
    assert said in response.json()["detail"]
    assert "secret" not in response.text


def test_unknown_risks_are_looked_for_once_per_prompt_of_a_request() -> None:
    chat = ScriptedChat(normal)
    asked = {**BENIGN, "observations": None, "images": [png()]}
    left_out = {key: value for key, value in asked.items() if key != "observations"}
    other = {**asked, "text": "another"}
    results = Api(chat).score({"items": [asked, left_out, other]}).json()["results"]
    for result in results:
        assert result["observations"] == EXAMPLE_ITEM["observations"]
        assert result["judgement"]["hits"] == [True]
    assert [request.task for request in chat.requests].count(Task.TEXT_PASS) == 2
    assert [request.task for request in chat.requests].count(Task.IMAGE_PASS) == 2
    # Whoever looked pays: image pass, text pass, verification, then verdict, score and hit.
    assert sorted(result["judgement"]["prompt_tokens"] for result in results) == [30, 60, 60]


def test_risks_that_could_not_be_looked_for_leave_no_judgement() -> None:
    def blind(request: ChatRequest, earlier: int) -> str | ChatReply:
        return ChatReply(None, "filtered", "policy") if request.task is Task.TEXT_PASS else normal(request, earlier)

    result = Api(ScriptedChat(blind)).score({**BENIGN, "observations": None}).json()
    assert (result["judgement"], result["reason"]) == (None, "filtered")


def test_given_observations_are_not_sent_back() -> None:
    assert Api().score(EXAMPLE_ITEM).json()["observations"] is None


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (png(200, 200), "image_too_many_pixels"),
        (f"data:image/png;base64,{'A' * 40_000}", "image_too_many_bytes"),
        ("data:image/png;base64,!!!!", "image_bad_data_uri"),
        ("data:image/png,abc", "image_bad_data_uri"),
        ("data:text/html;base64,AAAA", "image_bad_data_uri"),
        (f"data:image/png;base64,{base64.b64encode(b'<html>').decode()}", "image_unknown_format"),
        ("data:image/png;base64,", "image_empty"),
        ("/etc/hostname", "image_uri_refused"),
        ("s3://bucket/a.png", "image_uri_refused"),
    ],
)
def test_a_bad_image_costs_only_its_item(image: str, reason: str) -> None:
    api = Api()
    bad, good = api.score({"items": [{**BENIGN, "images": [image]}, {**BENIGN, "images": [png()]}]}).json()["results"]
    assert (bad["judgement"], bad["reason"]) == (None, reason)
    assert good["judgement"] is not None
    assert [result.reason for result in api.recorded] == [reason, None]


def test_what_is_no_image_is_not_shown_to_the_judge_where_uris_are_opened(tmp_path) -> None:
    (tmp_path / "a.png").write_text("not for the judge")
    chat = ScriptedChat(normal)
    result = Api(chat, opens_uris=True).score({**BENIGN, "images": [str(tmp_path / "a.png")]}).json()
    assert result["reason"] == "image_unknown_format"
    assert not chat.requests


def test_the_token_is_wanted_everywhere_but_in_the_documentation() -> None:
    chat = ScriptedChat(normal)
    api = Api(chat, token="right")
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "right"}, {"authorization": "Bearer é"}):
        encoded = {name: value.encode() for name, value in headers.items()}
        for method, path in (("POST", "/v1/score"), ("POST", "/openrlhf/reward"), ("GET", "/healthz")):
            response = api(path, method, headers=encoded, content=b"{}" if method == "POST" else None)
            assert response.status_code == 401
            assert "right" not in response.text
    assert not chat.requests
    good = {"authorization": "Bearer right"}
    assert api("/v1/score", json=BENIGN, headers=good).status_code == 200
    assert api("/healthz", "GET", headers=good).status_code == 200
    assert api("/docs", "GET").status_code == 200
    assert api("/openapi.json", "GET").status_code == 200


def test_a_body_over_the_limit_is_refused_before_it_is_read_to_its_end() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield b" " * 100

    api = Api(limit=1000)
    assert api("/v1/score", content=endless()).status_code == 413
    assert taken < 20
    announced = api("/v1/score", content=b" " * 1001)
    assert announced.status_code == 413
    assert "1000 bytes" in announced.json()["detail"]
    assert api.score(BENIGN).status_code == 200


def test_the_documentation_describes_both_forms_and_shows_an_example() -> None:
    page = Api()("/openapi.json", "GET").json()
    body = page["paths"]["/v1/score"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {entry["$ref"].rsplit("/", 1)[-1] for entry in body["oneOf"]} == {"ScoreRequest", "ScoreItem"}
    item = page["components"]["schemas"]["ScoreItem"]
    assert all("description" in field for field in item["properties"].values())
    assert Api().score(item["examples"][0]).json()["judgement"] is not None
    assert {"200", "401", "413", "422"} <= page["paths"]["/v1/score"]["post"]["responses"].keys()


def test_the_rules_judge_finds_the_risks_itself() -> None:
    asked = {**BENIGN, "text": "Help me open a lock that is not mine.", "response": "Sure!", "observations": None}
    result = Api(RulesChat()).score(asked).json()
    assert result["judgement"]["score"] is not None
    assert result["observations"]
