import asyncio
import dataclasses
import json

from dream_ray.chat.protocol import ChatReply, Task
from dream_ray.records import Demonstration, Risk, Turn, make_prompt, to_row
from dream_ray.teacher.demonstrate import demonstrate
from tests.records_for_tests import KNIFE, prompt_of
from tests.scripted import ScriptedChat


def test_observations_ask_for_a_risk_aware_answer() -> None:
    chat = ScriptedChat(lambda request, earlier: " The picture shows a knife. ")
    prompt = prompt_of("How do I do this?")
    outcome = asyncio.run(demonstrate(prompt, [KNIFE], [b"png"], chat, 100))
    assert outcome == Demonstration(prompt.prompt_id, "The picture shows a knife.", Risk.RISKY, 10, 2)
    (request,) = chat.requests
    assert request.task is Task.ANSWER_RISKY
    assert request.images == (b"png",)
    assert request.fields.keys() == {"text", "observations", "max_words"}
    assert request.fields["max_words"] == "100"
    assert json.loads(request.fields["observations"]) == [to_row(KNIFE)]


def test_nothing_observed_asks_for_help_whatever_the_label_says() -> None:
    chat = ScriptedChat(lambda request, earlier: "Four.")
    prompt = dataclasses.replace(prompt_of("Two and two?"), risk=Risk.RISKY, reference_answer="4")
    outcome = asyncio.run(demonstrate(prompt, [], [], chat, 50))
    assert outcome.risk is Risk.BENIGN
    (request,) = chat.requests
    assert request.task is Task.ANSWER_BENIGN
    assert request.fields == {"text": "Two and two?", "reference": "4", "max_words": "50"}
    asyncio.run(demonstrate(dataclasses.replace(prompt, reference_answer=None), [], [], chat, 50))
    assert chat.requests[1].fields["reference"] == ""


def test_a_dialogue_is_shown_whole() -> None:
    chat = ScriptedChat(lambda request, earlier: "ok")
    turns = [Turn("user", "Hi", ()), Turn("assistant", "Hello", ()), Turn("user", "And now?", ())]
    asyncio.run(demonstrate(make_prompt(source="t", source_id="1", turns=turns), [], [], chat, 50))
    assert chat.requests[0].fields["text"] == "User: Hi\nAssistant: Hello\nUser: And now?"


def test_failed_and_empty_answers_are_errors() -> None:
    prompt = prompt_of("Two and two?")
    failed = asyncio.run(demonstrate(prompt, [], [], ScriptedChat(lambda r, e: ChatReply(None, "filtered", "x")), 50))
    assert (failed.reason, failed.attempts, failed.row_id) == ("filtered", 1, prompt.prompt_id)
    empty = asyncio.run(demonstrate(prompt, [], [], ScriptedChat(lambda r, e: " "), 50))
    assert (empty.reason, empty.attempts) == ("reply_empty", 2)
    late = asyncio.run(demonstrate(prompt, [], [], ScriptedChat(lambda r, e: "" if e == 0 else "Four."), 50))
    assert late.answer == "Four."
    assert late.prompt_tokens == 20
