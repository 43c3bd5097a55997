"""One question to a chat model with its reply read: asked once more with the reason if unreadable, never defaulted.

Contract: `ask` returns a parsed value or raises `AskFailed` with a reason for the errors table, and adds the tokens of
every call, failed ones too, to the caller's `Usage`. Transport retries are the backend's business, not repeated here.
What stays unreadable is taken out of the response cache: only `ask` knows that it could not be read.
`with_raw` keeps the reply beside what was read from it.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from dream_ray.chat.parse import ParseError
from dream_ray.chat.protocol import ChatModel, ChatReply, ChatRequest, Unreadable
from dream_ray.prompts.neutral import neutralised, restored
from dream_ray.records import ErrorRow

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")

TRIES = 2
"""Calls made for one readable reply. More would re-roll hard rows more often than easy ones and bias what is kept."""


FINGERPRINT_DIGITS = 12
"""Hex digits of a question's fingerprint in the errors table."""
RAW_CHARS = 4000
"""How much of a reply a record keeps: all of any that keeps to its form, and a bound on those that think aloud."""


class AskFailed(Exception):
    """No readable reply: a short `reason`, a `detail` for the errors table, the calls made and the question's
    fingerprint."""

    def __init__(self, reason: str, detail: str, attempts: int, fingerprint: str):
        super().__init__(reason)
        self.reason = reason
        self.detail = detail
        self.attempts = attempts
        self.fingerprint = fingerprint


@dataclass
class Usage:
    """Tokens spent on one row."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


async def ask(chat: ChatModel, request: ChatRequest, parse: Callable[[str], T], usage: Usage) -> T:
    """The parsed reply. Raises AskFailed; what the backend itself raises (a setting that cannot work) passes
    through."""
    attempts = 0
    fingerprint = request.fingerprint[:FINGERPRINT_DIGITS]
    replies: list[ChatReply] = []
    for _ in range(TRIES):
        reply = await chat.ask(request)
        replies.append(reply)
        attempts += reply.attempts
        usage.prompt_tokens += reply.prompt_tokens
        usage.completion_tokens += reply.completion_tokens
        usage.cached_tokens += reply.cached_tokens
        if reply.text is None:
            raise AskFailed(reply.reason or "no_reply", f"{request.task.value}: {reply.detail}", attempts, fingerprint)
        text = restored(reply.text)
        try:
            return parse(text)
        except ParseError as error:
            unreadable = error
            request = replace(request, unreadable=Unreadable(neutralised(text), error.reason))
    for reply in replies:
        if reply.forget is not None:
            await reply.forget()
    raise AskFailed(unreadable.reason, f"{request.task.value}: {unreadable.detail}", attempts, fingerprint)


def error_row(stage: str, row_id: str, failure: AskFailed, usage: Usage) -> ErrorRow:
    """The errors table's row of a question that failed, with the tokens that the row cost all the same."""
    return ErrorRow(
        stage=stage,
        row_id=row_id,
        reason=failure.reason,
        detail=failure.detail,
        attempts=failure.attempts,
        fingerprint=failure.fingerprint,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


def with_raw(parse: Callable[[str], T]) -> Callable[[str], tuple[T, str]]:
    """The parser, giving its value and the end of the reply that it was read from, where answers stand."""
    return lambda text: (parse(text), text[-RAW_CHARS:])


async def all_of(questions: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All answers in order. Waits for every question, so that none goes on unseen, then raises the first failure."""
    answers = await asyncio.gather(*questions, return_exceptions=True)
    values: list[T] = []
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        values.append(answer)
    return values


async def both(first: Coroutine[Any, Any, A], second: Coroutine[Any, Any, B]) -> tuple[A, B]:
    """`all_of` for two questions with answers of different kinds."""
    one, two = await asyncio.gather(first, second, return_exceptions=True)
    if isinstance(one, BaseException):
        raise one
    if isinstance(two, BaseException):
        raise two
    return one, two
