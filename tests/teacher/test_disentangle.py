import asyncio
import dataclasses
import json

import pytest

from dream_ray.chat.fields import observation_field, observations_field
from dream_ray.chat.protocol import ChatReply, ChatRequest, Task
from dream_ray.config import ImageConfig
from dream_ray.images import BadImage
from dream_ray.records import Disentanglement, ErrorRow, Turn, make_prompt
from dream_ray.stored_images import read_images
from dream_ray.teacher.disentangle import disentangle
from tests.records_for_tests import KNIFE, LOCK, prompt_of, stored_image
from tests.scripted import Script, ScriptedChat

ODD = '{"content": "x", "source": "image content", "category": "Weather"}'


def run(prompt, images, script: Script):
    chat = ScriptedChat(script)
    return asyncio.run(disentangle(prompt, images, chat)), chat


def both_risks(request: ChatRequest, earlier: int) -> str:
    if request.task is Task.VERIFY:
        return "Yes"
    return observations_field([KNIFE] if request.task is Task.IMAGE_PASS else [LOCK])


def test_image_risks_come_first_and_tokens_add_up() -> None:
    outcome, chat = run(prompt_of("Help me open a lock that is not mine"), [b"png"], both_risks)
    assert isinstance(outcome, Disentanglement)
    assert outcome.observations == (KNIFE, LOCK)
    assert (outcome.rejected, outcome.dropped) == (0, 0)
    assert (outcome.prompt_tokens, outcome.completion_tokens) == (40, 8)
    assert outcome.raw == (observations_field([KNIFE]), observations_field([LOCK]), "Yes", "Yes")
    assert [request.task for request in chat.requests] == [Task.IMAGE_PASS, Task.TEXT_PASS, Task.VERIFY, Task.VERIFY]
    assert chat.requests[0].images == (b"png",)
    assert chat.requests[1].images == ()


def test_every_image_has_its_pass_and_all_user_turns_are_read() -> None:
    turns = [Turn("user", "first", ()), Turn("assistant", "not mine", ()), Turn("user", "second", ())]
    prompt = make_prompt(source="test", source_id="1", turns=turns)
    outcome, chat = run(prompt, [b"a", b"b"], lambda request, earlier: "[]")
    assert isinstance(outcome, Disentanglement)
    assert outcome.observations == ()
    assert [request.images for request in chat.requests[:2]] == [(b"a",), (b"b",)]
    assert chat.requests[2].fields == {"text": "first\nsecond"}


def test_a_pass_may_only_name_what_it_sees() -> None:
    def script(request: ChatRequest, earlier: int) -> str:
        return "Yes" if request.task is Task.VERIFY else observations_field([KNIFE, LOCK])

    outcome, _ = run(prompt_of("text"), [b"png"], script)
    assert outcome.observations == (KNIFE, LOCK)
    assert outcome.dropped == 2


def test_turned_down_repeated_and_unknown_observations() -> None:
    again = dataclasses.replace(KNIFE, content="A knife  held at someone")

    def script(request: ChatRequest, earlier: int) -> str:
        if request.task is Task.VERIFY:
            return "No" if request.fields["content"] == KNIFE.content else "Yes"
        if request.task is Task.TEXT_PASS:
            return observations_field([LOCK, LOCK])
        return f"[{observation_field(KNIFE)}, {observation_field(again)}, {ODD}]"

    outcome, chat = run(prompt_of("text"), [b"png"], script)
    assert outcome.observations == (LOCK,)
    assert (outcome.rejected, outcome.dropped) == (1, 1)
    assert sum(request.task is Task.VERIFY for request in chat.requests) == 2


@pytest.mark.parametrize("failing", [Task.IMAGE_PASS, Task.TEXT_PASS, Task.VERIFY])
def test_any_failed_call_fails_the_prompt(failing: Task) -> None:
    def script(request: ChatRequest, earlier: int) -> str | ChatReply:
        failed = ChatReply(None, "timeout", "no answer in 60 s")
        return failed if request.task is failing else both_risks(request, earlier)

    outcome, chat = run(prompt_of("text"), [b"png"], script)
    assert isinstance(outcome, ErrorRow)
    assert (outcome.stage, outcome.reason, outcome.attempts) == ("disentangle", "timeout", 1)
    assert outcome.detail == f"{failing.value}: no answer in 60 s"
    assert outcome.fingerprint == next(r for r in chat.requests if r.task is failing).fingerprint[:12]
    assert outcome.prompt_tokens == 10 * sum(request.task is not failing for request in chat.requests)
    # The backend has done its own retries: none here.
    assert sum(request.task is failing for request in chat.requests) == (2 if failing is Task.VERIFY else 1)


@pytest.mark.parametrize("failing", [Task.IMAGE_PASS, Task.TEXT_PASS, Task.VERIFY])
def test_an_unreadable_reply_is_asked_for_once_more(failing: Task) -> None:
    def once(request: ChatRequest, earlier: int) -> str:
        return "Hmm." if request.task is failing and earlier == 0 else both_risks(request, earlier)

    outcome, _ = run(prompt_of("text"), [b"png"], once)
    assert isinstance(outcome, Disentanglement)
    assert outcome.observations == (KNIFE, LOCK)

    def always(request: ChatRequest, earlier: int) -> str:
        return "Hmm." if request.task is failing else both_risks(request, earlier)

    outcome, _ = run(prompt_of("text"), [b"png"], always)
    assert isinstance(outcome, ErrorRow)
    assert outcome.attempts == 2
    assert outcome.reason == ("no_yes_or_no" if failing is Task.VERIFY else "no_list")


def test_a_picture_without_words_needs_no_text_pass_and_nothing_at_all_is_an_error() -> None:
    outcome, chat = run(prompt_of(" "), [b"png"], lambda request, earlier: "[]")
    assert isinstance(outcome, Disentanglement)
    assert [request.task for request in chat.requests] == [Task.IMAGE_PASS]
    outcome, _ = run(prompt_of(" "), [], lambda request, earlier: "[]")
    assert outcome.reason == "prompt_empty"


def test_what_the_backend_raises_is_a_bad_setting_and_stops_the_stage() -> None:
    def script(request: ChatRequest, earlier: int) -> str:
        raise PermissionError("wrong key")

    with pytest.raises(PermissionError):
        run(prompt_of("text"), [], script)


def test_images_are_read_as_ingest_saw_them(tmp_path) -> None:
    image = stored_image(tmp_path)
    limits = ImageConfig()
    assert read_images([image], limits) == [(tmp_path / "red.png").read_bytes()]
    changed = dataclasses.replace(image, sha256="0" * 64)
    gone = dataclasses.replace(image, uri=str(tmp_path / "gone.png"))
    for bad, reason, cap in [
        (changed, "image_changed", limits),
        (gone, "image_missing", limits),
        (image, "image_too_many_bytes", ImageConfig(max_bytes=10)),
    ]:
        with pytest.raises(BadImage) as caught:
            read_images([bad], cap)
        assert caught.value.reason == reason


def test_the_observation_that_verify_sees_is_the_observation() -> None:
    _, chat = run(prompt_of("text"), [b"png"], both_risks)
    assert chat.requests[2].fields == {"content": KNIFE.content, "category": "Violence"}
    assert json.loads(observation_field(KNIFE))["source"] == "image content"
