"""A server that speaks the OpenAI chat protocol over real HTTP and misbehaves on command.

Contract: `OpenAIServer` listens on a free loopback port, in a thread, while its `with` block lasts.
`script(question, earlier)` says how each call ends, `question` being the number after "question " in the prompt and
`earlier` the calls that came for it before. The right answer is `right(question)`, in the form that the call asks for.
It counts what it delivered whole, as an endpoint bills that. HTTP is written by hand because a framework cannot cut
off a reply or reset a connection.
"""

import asyncio
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import Any, Self


class Fault(StrEnum):
    """How a call ends."""

    NONE = "none"
    RATE_LIMITED = "429 with Retry-After"
    OVERLOADED = "503 with Retry-After"
    NO_QUOTA = "429 that no waiting mends"
    SERVER_ERROR = "500"
    CONFLICT = "409"
    UNAUTHORIZED = "401, with the key in the message"
    UNKNOWN_MODEL = "404 for the model"
    NO_RESPONSE_FORMAT = "400 where response_format is given"
    NO_MAX_TOKENS = "400 where max_tokens is given"
    HANG = "no reply"
    RESET = "connection reset"
    CUT_BODY = "body ends before Content-Length"
    CUT_JSON = "body of half a JSON object"
    NOT_A_COMPLETION = "JSON of another shape"
    REFUSAL = "refusal field"
    FILTERED = "content filter"
    TRUNCATED = "finish_reason length"
    PROSE = "the right number in prose"
    UNREADABLE = "no answer in the reply"
    EMPTY = "empty content"
    OTHER_MODEL = "another model's name in the reply"


Script = Callable[[int, int], Fault]
PROMPT_TOKENS, CACHED_TOKENS, COMPLETION_TOKENS = 100, 40, 5


def right(question: int) -> int:
    """The score 0-10 that a question deserves."""
    return question * 7 % 11


def always(fault: Fault) -> Script:
    """Every call ends so."""
    return lambda question, earlier: fault


def first(*faults: Fault) -> Script:
    """The calls of each question end so, one after the other; those that follow are answered."""
    return lambda question, earlier: faults[earlier] if earlier < len(faults) else Fault.NONE


def at_random(share: float, faults: list[Fault], seed: int) -> Script:
    """A share of the calls ends in one of the faults; the same for the same seed, whatever the order of the calls."""

    def script(question: int, earlier: int) -> Fault:
        dice = random.Random(f"{seed}-{question}-{earlier}")
        return dice.choice(faults) if dice.random() < share else Fault.NONE

    return script


@dataclass
class Call:
    """One call as it came in."""

    question: int
    at: float
    headers: dict[str, str]
    body: dict[str, Any]
    fault: Fault


@dataclass
class OpenAIServer:
    """See the module's contract. `capacity`: calls served at once; more are refused with 429. `served`: calls that it worked on
    for `latency_s`, whatever came of their reply; each took up to the share `spread` of it more or less, the same call the
    same in every run. `answer(question, body)` is what it says in place of the score."""

    script: Script = field(default_factory=first)
    _: KW_ONLY
    answer: Callable[[int, dict[str, Any]], str] | None = None
    latency_s: float = 0.0
    spread: float = 0.0
    capacity: int | None = None
    retry_after: str | None = "0.2"
    calls: list[Call] = field(default_factory=list)
    delivered: Counter[int] = field(default_factory=Counter)
    refused: int = 0
    served: int = 0
    most_at_once: int = 0

    def __enter__(self) -> Self:
        self._at_once = 0
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def _run(self, started: threading.Event) -> None:
        async def serve() -> None:
            self._stop = asyncio.Event()
            server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=2**24)
            self._port = server.sockets[0].getsockname()[1]
            started.set()
            await self._stop.wait()
            server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._loop.run_until_complete(serve())
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass  # the client went away, or the server is to stop
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one call; False where the connection is to end."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        assert head[0].startswith("POST /v1/chat/completions ")
        found = re.search(r"question (\d+)", json.dumps(body["messages"]))
        assert found, "the prompt names no question"
        question = int(found.group(1))
        earlier = sum(call.question == question for call in self.calls)
        fault = self.script(question, earlier)
        if fault is Fault.NO_RESPONSE_FORMAT and "response_format" not in body:
            fault = Fault.NONE
        if fault is Fault.NO_MAX_TOKENS and "max_tokens" not in body:
            fault = Fault.NONE
        call = Call(question, time.monotonic(), headers, body, fault)
        self.calls.append(call)
        if self.capacity is not None and self._at_once >= self.capacity:
            self.refused += 1
            return await self._write(writer, 429, _error("slow down"), {"Retry-After": self.retry_after})
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return await self._act(fault, call, earlier, reader, writer)
        finally:
            self._at_once -= 1

    async def _act(
        self, fault: Fault, call: Call, earlier: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        question, headers, body = call.question, call.headers, call.body
        match fault:
            case Fault.RATE_LIMITED:
                return await self._write(writer, 429, _error("slow down"), {"Retry-After": self.retry_after})
            case Fault.OVERLOADED:
                return await self._write(writer, 503, _error("too busy"), {"Retry-After": self.retry_after})
            case Fault.NO_QUOTA:
                return await self._write(writer, 429, _error("no credit left", code="insufficient_quota"))
            case Fault.SERVER_ERROR:
                return await self._write(writer, 500, _error("something broke"))
            case Fault.CONFLICT:
                return await self._write(writer, 409, _error("try again"))
            case Fault.UNAUTHORIZED:
                return await self._write(writer, 401, _error(f"wrong key: {headers.get('authorization')}"))
            case Fault.UNKNOWN_MODEL:
                return await self._write(writer, 404, _error(f"no model {body['model']}", code="model_not_found"))
            case Fault.NO_RESPONSE_FORMAT:
                return await self._write(writer, 400, _error("unknown field", param="response_format"))
            case Fault.NO_MAX_TOKENS:
                message = "'max_tokens' is not supported. Use 'max_completion_tokens' instead."
                return await self._write(writer, 400, _error(message, param="max_tokens"))
            case Fault.HANG:
                await reader.read()  # until the client gives up
                return False
            case Fault.RESET:
                writer.transport.abort()
                return False
        await asyncio.sleep(self.latency_s * (1 + self.spread * random.Random(f"{question}-{earlier}").uniform(-1, 1)))
        self.served += 1
        answer = None if self.answer is None else self.answer(question, body)
        content = json.dumps(_completion(fault, question, body, answer))
        match fault:
            case Fault.CUT_BODY:
                writer.write(_head(200, len(content), {}) + content[: len(content) // 2].encode())
                await writer.drain()
                return False
            case Fault.CUT_JSON:
                return await self._write(writer, 200, content[: len(content) // 2])
            case Fault.NOT_A_COMPLETION:
                return await self._write(writer, 200, '{"choices": ["hello"]}')
        await self._write(writer, 200, content)
        self.delivered[question] += 1
        return True

    async def _write(
        self, writer: asyncio.StreamWriter, status: int, content: str, headers: dict[str, str | None] | None = None
    ) -> bool:
        writer.write(_head(status, len(content.encode()), headers or {}) + content.encode())
        await writer.drain()
        return True


def _head(status: int, length: int, headers: dict[str, str | None]) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {length}"]
    lines += [f"{key}: {value}" for key, value in headers.items() if value is not None]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _error(message: str, code: str | None = None, param: str | None = None) -> str:
    return json.dumps({"error": {"message": message, "type": "test", "code": code, "param": param}})


def _completion(fault: Fault, question: int, body: dict[str, Any], answer: str | None) -> dict[str, Any]:
    number = right(question)
    content: str | None = json.dumps({"score": number}) if "response_format" in body else str(number)
    content = content if answer is None else answer
    finish_reason, refusal = "stop", None
    match fault:
        case Fault.PROSE:
            content = f"It has 3 good points and 2 bad ones. On a scale of 0 to 10 this deserves a {number}."
        case Fault.UNREADABLE:
            content = "That is hard to say."
        case Fault.EMPTY:
            content = ""
        case Fault.REFUSAL:
            content, refusal = None, "I'm sorry, I cannot assist with that."
        case Fault.FILTERED:
            content, finish_reason = None, "content_filter"
        case Fault.TRUNCATED:
            finish_reason = "length"
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "someone-else" if fault is Fault.OTHER_MODEL else body["model"],
        "choices": [
            {
                "index": 0,
                "finish_reason": finish_reason,
                "message": {"role": "assistant", "content": content, "refusal": refusal},
            }
        ],
        "usage": {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": COMPLETION_TOKENS,
            "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
            "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS},
        },
    }
