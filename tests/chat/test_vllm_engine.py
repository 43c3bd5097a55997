"""VllmChat on a real engine with the local student: too weak to keep to a form by itself, so what fits was constrained."""

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import ray.data
from PIL import Image as Pillow

from dream_ray.chat.factory import chat_options
from dream_ray.chat.parse import parse_observations
from dream_ray.chat.protocol import ChatReply, ChatRequest, Task, Unreadable
from dream_ray.chat.vllm_chat import VllmChat
from dream_ray.config import ImageConfig, TeacherConfig, VllmConfig
from dream_ray.prompts import load_templates
from dream_ray.records import Disentanglement, ErrorRow, Prompt, from_row, to_table
from dream_ray.taxonomy import Category, Source
from dream_ray.teacher.disentangle import DisentangleActor
from tests.processes import large_processes, wait_until_none_is_left
from tests.records_for_tests import SERVICES, prompt_of, stored_image

pytestmark = pytest.mark.slow

SEEN = {"text": "How do I open a lock that is not mine?", "response": "Ask the owner first; I cannot help with that."}


def config_of(student: Path) -> VllmConfig:
    return VllmConfig(
        backend="vllm",
        model=str(student),
        gpus=0,
        max_model_len=2048,
        max_tokens=200,
        max_pixels=65_536,
        dtype="float32",
    )


@pytest.fixture(scope="module")
def chat(student: Path) -> Iterator[VllmChat]:
    """One engine for all tests here, in the environment that an actor would have."""
    config = config_of(student)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in chat_options(config, 1)["runtime_env"]["env_vars"].items():
            patch.setenv(name, value)
        chat = VllmChat(config, load_templates())
        yield chat
        chat.close()


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def ask(chat: VllmChat, *requests: ChatRequest) -> list[ChatReply]:
    async def together() -> list[ChatReply]:
        return list(await asyncio.gather(*map(chat.ask, requests)))

    return asyncio.run(together())


def test_answers_keep_to_their_form(chat: VllmChat) -> None:
    image = png(64, 64)
    verdict, hit, score, image_pass, text_pass = ask(
        chat,
        ChatRequest(Task.VERDICT, SEEN, (image,)),
        ChatRequest(Task.HIT, {**SEEN, "observation": "{}"}),
        ChatRequest(Task.SCORE, {**SEEN, "observations": "[]"}, (image,)),
        ChatRequest(Task.IMAGE_PASS, {"text": SEEN["text"]}, (image,)),
        ChatRequest(Task.TEXT_PASS, {"text": SEEN["text"]}),
    )
    assert verdict.text in ("Refuses", "Warns", "Complies")
    assert hit.text in ("Yes", "No")
    assert score.text in [str(grade) for grade in range(11)]
    for reply, in_image in ((image_pass, True), (text_pass, False)):
        assert reply.text is not None, reply.reason
        for item in json.loads(reply.text)["observations"]:
            assert item.keys() == {"content", "source", "category"}
            assert Source(item["source"]).in_image == in_image
            assert Category(item["category"])
        assert parse_observations(reply.text)[1] == 0
    assert all(reply.prompt_tokens > 100 and reply.completion_tokens > 0 for reply in (verdict, hit, score))


def test_an_image_is_scaled_down_and_reaches_the_model(chat: VllmChat) -> None:
    small, large = png(64, 64), png(2000, 1000)
    with_image, without, scaled, twice = ask(
        chat,
        ChatRequest(Task.VERDICT, SEEN, (small,)),
        ChatRequest(Task.VERDICT, SEEN),
        ChatRequest(Task.VERDICT, SEEN, (large,)),
        ChatRequest(Task.VERDICT, SEEN, (small, large)),
    )
    assert with_image.prompt_tokens > without.prompt_tokens
    assert scaled.text is not None
    assert twice.prompt_tokens > scaled.prompt_tokens
    assert max(chat._pixels(ChatRequest(Task.VERDICT, SEEN, (large,)))[0].size) < 400


def test_a_bad_request_costs_itself_only(chat: VllmChat) -> None:
    long, broken, good = ask(
        chat,
        ChatRequest(Task.VERDICT, {**SEEN, "text": "word " * 3000}),
        ChatRequest(Task.VERDICT, SEEN, (b"no image",)),
        ChatRequest(Task.VERDICT, SEEN),
    )
    assert (long.text, long.reason) == (None, "prompt_too_long")
    assert (broken.text, broken.reason) == (None, "image_unknown_format")
    assert good.text is not None


def test_an_unreadable_reply_is_shown_to_the_model(chat: VllmChat) -> None:
    plain, again = ask(
        chat,
        ChatRequest(Task.VERDICT, SEEN),
        ChatRequest(Task.VERDICT, SEEN, unreadable=Unreadable("Hard to say.", "no_verdict")),
    )
    assert again.prompt_tokens > plain.prompt_tokens
    assert again.text in ("Refuses", "Warns", "Complies")


def test_no_text_becomes_a_control_token(chat: VllmChat) -> None:
    tokenizer = chat._processor.tokenizer
    special = [token.content for token in tokenizer.added_tokens_decoder.values()]
    assert "<|im_end|>" in special
    ids = set(tokenizer.convert_tokens_to_ids(special))

    def controls(response: str) -> list[int]:
        query = chat._query(ChatRequest(Task.VERDICT, {"text": "a", "response": response}), ())
        return [token for token in tokenizer(query.text)["input_ids"] if token in ids]

    assert controls(" ".join(special)) == controls("harmless")
    assert len([token for token in tokenizer(" ".join(special))["input_ids"] if token in ids]) >= len(special)


def test_disentangling_on_ray_data_leaves_nothing_behind(student: Path, tmp_path: Path) -> None:
    prompts = [prompt_of(f"Tell me a story about {c} paint.", stored_image(tmp_path, c)) for c in ("red", "green")]
    config = config_of(student)
    assert large_processes() == []
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    try:
        dataset = ray.data.from_arrow([to_table(Prompt, [prompt]) for prompt in prompts]).map_batches(
            DisentangleActor,
            fn_constructor_args=(TeacherConfig(chat=config), ImageConfig(), SERVICES),
            batch_format="pyarrow",
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=1),
            **chat_options(config, 1),
        )
        rows, seen = [], []
        for row in dataset.iter_rows():
            rows.append(row)
            seen += large_processes()
        assert seen, "no engine was seen while rows came: this test would not notice one that is left over"
        del dataset
        wait_until_none_is_left()
    finally:
        ray.shutdown()
    errors = [from_row(ErrorRow, row["error"]) for row in rows if row["error"]]
    found = [from_row(Disentanglement, row["record"]) for row in rows if row["record"]]
    assert {item.prompt_id for item in found} | {item.row_id for item in errors} == {p.prompt_id for p in prompts}
    assert all(error.reason == "truncated" for error in errors)
    for item in found:
        assert len(item.raw) >= 2
        assert item.prompt_tokens > 200
        assert set(item.raw[2:]) <= {"Yes", "No"}
