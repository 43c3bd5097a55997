"""A judge whose engine is dead ends its process, so that Serve starts another."""

import asyncio

import pytest

from dream_ray.chat.protocol import ChatReply, ChatRequest, Task
from dream_ray.engine.engine import EngineDied
from dream_ray.feedback import scorer
from tests.scripted import ScriptedChat

ASKED = ChatRequest(Task.VERIFY, {"content": "a knife", "category": "x"}, ())


def test_a_dead_engine_ends_the_replica_and_a_bad_reply_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(scorer, "end_process", lambda: ended.append(True))

    def script(request: ChatRequest, earlier: int) -> ChatReply:
        if earlier:
            raise EngineDied("CUDA error")
        return ChatReply(None, "truncated")

    chat = scorer.EndsWithItsEngine(ScriptedChat(script))
    assert asyncio.run(chat.ask(ASKED)).reason == "truncated"
    assert not ended
    with pytest.raises(EngineDied):
        asyncio.run(chat.ask(ASKED))
    assert ended
