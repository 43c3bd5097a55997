import asyncio

import pytest

from dream_ray.chat.protocol import ChatReply
from dream_ray.feedback.api import health
from tests.scripted import ScriptedChat


def test_a_judge_that_answers_is_well() -> None:
    assert asyncio.run(health(ScriptedChat(lambda request, earlier: "Complies")))[0] == 200


@pytest.mark.parametrize("reply", [ChatReply(None, "no_reply", "connection refused"), "Hm?"])
def test_a_judge_that_is_up_but_answers_nothing_readable_is_not(reply: ChatReply | str) -> None:
    status, body = asyncio.run(health(ScriptedChat(lambda request, earlier: reply)))
    assert (status, body["status"], body["judge"]) == (503, "failing", "scripted")
    assert body["reason"] in {"no_reply", "no_verdict"}
