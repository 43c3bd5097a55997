"""Whether a judge can judge: /healthz asks it, Serve is told only what a new replica would mend."""

import asyncio
from types import SimpleNamespace

import pytest

from dream_ray.chat.cache import CachedChat
from dream_ray.chat.factory import make_chat
from dream_ray.chat.meter import MeteredChat
from dream_ray.chat.protocol import ChatModel, ChatReply
from dream_ray.config import ImageConfig, OpenAIConfig, PriceConfig, RulesConfig
from dream_ray.feedback.api import health
from dream_ray.feedback.items import ItemJudge
from dream_ray.feedback.scorer import Scorer
from tests.records_for_tests import SERVICES
from tests.scripted import ScriptedChat

ENDPOINT = OpenAIConfig(backend="openai", model="m", base_url="http://127.0.0.1:9/v1", api_key_env="")


def test_a_judge_that_answers_is_well() -> None:
    assert asyncio.run(health(ScriptedChat(lambda request, earlier: "Complies")))[0] == 200


@pytest.mark.parametrize("reply", [ChatReply(None, "no_reply", "connection refused"), "Hm?"])
def test_a_judge_that_is_up_but_answers_nothing_readable_is_not(reply: ChatReply | str) -> None:
    status, body = asyncio.run(health(ScriptedChat(lambda request, earlier: reply)))
    assert (status, body["status"], body["judge"]) == (503, "failing", "scripted")
    assert body["reason"] in {"no_reply", "no_verdict"}


def test_serve_is_told_of_a_judge_that_is_broken_and_of_no_endpoint_that_is_down(tmp_path) -> None:
    def check(chat: ChatModel) -> None:
        replica = SimpleNamespace(_judge=ItemJudge(chat, ImageConfig(), opens_uris=False))
        Scorer.func_or_class.check_health(replica)

    down = ChatReply(None, "connection_failed")
    chat = ScriptedChat(lambda request, earlier: down)
    wrapped = CachedChat(MeteredChat(chat, PriceConfig(), None, 1), ENDPOINT, SERVICES.templates, str(tmp_path))
    assert asyncio.run(health(wrapped))[0] == 503
    check(wrapped)
    chat.broken = True
    with pytest.raises(RuntimeError, match="broken"):
        check(wrapped)
    check(make_chat(ENDPOINT, SERVICES))
    check(make_chat(RulesConfig(), SERVICES))
