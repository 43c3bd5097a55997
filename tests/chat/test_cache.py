"""The response cache: what is kept, what is not, and that nothing broken is ever served."""

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from dream_ray.chat.ask import AskFailed, Usage, ask
from dream_ray.chat.cache import CachedChat, check_cache
from dream_ray.chat.parse import parse_yes_no
from dream_ray.chat.protocol import ChatReply, ChatRequest, Task
from dream_ray.config import ConfigError, OpenAIConfig, VllmConfig
from dream_ray.prompts import Templates, load_templates
from tests.scripted import Script, ScriptedChat

MODEL = OpenAIConfig(backend="openai", model="small")
QUESTION = ChatRequest(Task.VERIFY, {"content": "a locked door", "category": "Privacy"}, (b"pixels",))
TEMPLATES = load_templates()


def cached(folder: Path, script: Script, config: OpenAIConfig | VllmConfig = MODEL) -> tuple[CachedChat, ScriptedChat]:
    chat = ScriptedChat(script)
    return CachedChat(chat, config, TEMPLATES, str(folder)), chat


def yes(request: ChatRequest, earlier: int) -> str:
    return "Yes"


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*"))


def test_a_reply_is_paid_once_with_the_counts_of_the_call(tmp_path: Path) -> None:
    paid = ChatReply("Yes", prompt_tokens=100, completion_tokens=3, cached_tokens=64, attempts=2)
    first, model = cached(tmp_path, lambda request, earlier: paid)
    assert asyncio.run(first.ask(QUESTION)) == paid
    assert asyncio.run(first.ask(QUESTION)) == paid
    elsewhere, other = cached(tmp_path, lambda request, earlier: "No")
    assert asyncio.run(elsewhere.ask(QUESTION)) == paid
    assert (len(model.requests), len(other.requests)) == (1, 0)
    assert elsewhere.name == "scripted"


@pytest.mark.parametrize(
    "changed",
    [
        replace(QUESTION, fields={"content": "a locked door", "category": "Violence"}),
        replace(QUESTION, images=(b"other pixels",)),
        replace(QUESTION, images=()),
        replace(QUESTION, images=(b"pix", b"els")),
    ],
)
def test_another_question_has_another_key(tmp_path: Path, changed: ChatRequest) -> None:
    chat, _ = cached(tmp_path, yes)
    assert chat.key(QUESTION) != chat.key(changed)


def test_the_key_follows_model_settings_and_wording_but_not_address_or_price(tmp_path: Path) -> None:
    def key(config: OpenAIConfig | VllmConfig, templates: Templates = TEMPLATES) -> str:
        return CachedChat(ScriptedChat(yes), config, templates, str(tmp_path)).key(QUESTION)

    reworded = Templates({**TEMPLATES.texts, Task.VERIFY: TEMPLATES.texts[Task.VERIFY] + "\nThink."})
    keys = {
        key(MODEL),
        key(MODEL, reworded),
        *(key(MODEL.model_copy(update=change)) for change in ({"model": "large"}, {"temperature": 1.0})),
        *(key(MODEL.model_copy(update=change)) for change in ({"max_tokens": 7}, {"max_pixels": 2048})),
        key(VllmConfig(backend="vllm", model="small")),
    }
    assert len(keys) == 7
    elsewhere = MODEL.model_copy(update={"base_url": "http://127.0.0.1:1/v1", "api_key_env": "K", "timeout_s": 1.0})
    assert key(elsewhere) == key(MODEL)


@pytest.mark.parametrize("reason", ["truncated", "refused_by_endpoint", "http_500", "budget_reached"])
def test_what_failed_is_asked_again(tmp_path: Path, reason: str) -> None:
    chat, model = cached(tmp_path, lambda request, earlier: "Yes" if earlier else ChatReply(None, reason))
    assert asyncio.run(chat.ask(QUESTION)).reason == reason
    assert entries(tmp_path) == []
    assert asyncio.run(chat.ask(QUESTION)).text == "Yes"
    assert len(model.requests) == 2


def test_an_unreadable_reply_is_not_pinned(tmp_path: Path) -> None:
    chat, _ = cached(tmp_path, lambda request, earlier: "Hm.")
    with pytest.raises(AskFailed) as failed:
        asyncio.run(ask(chat, QUESTION, parse_yes_no, Usage()))
    assert failed.value.fingerprint == QUESTION.fingerprint[:12]
    assert entries(tmp_path) == []
    better, model = cached(tmp_path, yes)
    assert asyncio.run(ask(better, QUESTION, parse_yes_no, Usage())) is True
    assert len(model.requests) == 1


def test_a_row_that_its_retry_saved_comes_out_the_same_for_nothing(tmp_path: Path) -> None:
    chat, model = cached(tmp_path, lambda request, earlier: "Yes" if request.unreadable else "Hm.")
    usage, again = Usage(), Usage()
    assert asyncio.run(ask(chat, QUESTION, parse_yes_no, usage)) is True
    silent, other = cached(tmp_path, lambda request, earlier: ChatReply(None, "no_call_expected"))
    assert asyncio.run(ask(silent, QUESTION, parse_yes_no, again)) is True
    assert (len(model.requests), len(other.requests)) == (2, 0)
    assert usage == again


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content, other: content[: len(content) // 2],
        lambda content, other: b"",
        lambda content, other: b"\0" * len(content),
        lambda content, other: b'{"text": "Yes"}',
        lambda content, other: json.dumps(json.loads(content) | {"text": None}).encode(),
        lambda content, other: json.dumps(json.loads(content) | {"prompt_tokens": -1}).encode(),
        lambda content, other: other,
    ],
)
def test_a_torn_or_foreign_file_is_a_miss_and_mended(tmp_path: Path, spoil, caplog) -> None:
    chat, model = cached(tmp_path, yes)
    asyncio.run(chat.ask(QUESTION))
    [path] = entries(tmp_path)
    asyncio.run(chat.ask(replace(QUESTION, images=())))
    [other] = [entry for entry in entries(tmp_path) if entry != path]
    path.write_bytes(spoil(path.read_bytes(), other.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(chat.ask(QUESTION)).text == "Yes"
    assert chat.cache.counts["bad_entry"] == 1
    assert "torn or no entry" in caplog.text
    assert len(model.requests) == 3
    asyncio.run(chat.ask(QUESTION))
    assert len(model.requests) == 3


def test_storage_that_fails_costs_money_but_no_row(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_bytes(b"")
    chat, _ = cached(tmp_path / "file" / "below", yes)
    assert asyncio.run(chat.ask(QUESTION)).text == "Yes"
    assert chat.cache.counts["not_kept"] == 1
    assert "paid for again" in caplog.text
    with pytest.raises(ConfigError, match="cannot be written"):
        check_cache(str(tmp_path / "file" / "below"))
    check_cache(str(tmp_path / "new"))


class SlowChat:
    """Answers after a moment, so that questions overlap; the first call can be made to fail."""

    name = "slow"

    def __init__(self, fail_first: bool = False):
        self.calls, self._fail_first = 0, fail_first

    async def ask(self, request: ChatRequest) -> ChatReply:
        self.calls += 1
        number = self.calls
        await asyncio.sleep(0.02)
        if number == 1 and self._fail_first:
            raise PermissionError("wrong key")
        return ChatReply("Yes", prompt_tokens=5)


def test_the_same_question_at_the_same_time_is_asked_once(tmp_path: Path) -> None:
    model = SlowChat()
    chat = CachedChat(model, MODEL, TEMPLATES, str(tmp_path))

    async def together() -> list[ChatReply]:
        return await asyncio.gather(*(chat.ask(QUESTION) for _ in range(20)))

    assert {reply.text for reply in asyncio.run(together())} == {"Yes"}
    assert model.calls == 1


def test_a_caller_that_gives_up_takes_no_reply_from_the_others(tmp_path: Path) -> None:
    model = SlowChat()
    chat = CachedChat(model, MODEL, TEMPLATES, str(tmp_path))

    async def one_gives_up() -> ChatReply:
        first = asyncio.create_task(chat.ask(QUESTION))
        second = asyncio.create_task(chat.ask(QUESTION))
        await asyncio.sleep(0.005)
        first.cancel()
        return await second

    assert asyncio.run(one_gives_up()).text == "Yes"
    assert model.calls == 1


def test_what_the_backend_raises_reaches_all_and_is_not_kept(tmp_path: Path) -> None:
    model = SlowChat(fail_first=True)
    chat = CachedChat(model, MODEL, TEMPLATES, str(tmp_path))

    async def together() -> list[BaseException | ChatReply]:
        return await asyncio.gather(*(chat.ask(QUESTION) for _ in range(3)), return_exceptions=True)

    assert all(isinstance(outcome, PermissionError) for outcome in asyncio.run(together()))
    assert asyncio.run(chat.ask(QUESTION)).text == "Yes"
    assert model.calls == 2


def test_a_fresh_question_reaches_the_model(tmp_path: Path) -> None:
    chat, model = cached(tmp_path, yes)
    for _ in range(2):
        asyncio.run(chat.ask(replace(QUESTION, fresh=True)))
    assert len(model.requests) == 2
    assert entries(tmp_path) == []
