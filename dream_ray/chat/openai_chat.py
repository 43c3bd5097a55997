"""A teacher or judge behind any endpoint that speaks the OpenAI chat protocol.

Contract: `OpenAIChat.ask` answers with the model's text, or with None and a reason, within `timeout_s` of the moment in which
the question was first let through; it never raises for what an endpoint does. Calls that 408, 409, 429, 5xx, a broken
connection or half a reply ended are made again, as long as the deadline and the retry budget allow; a reply that came
whole is never asked for again. All other errors end the question at once. Of an endpoint that answers nothing for several
deadlines on end, questions get the reason "endpoint_silent" and no call. How many calls are in flight follows what the
endpoint bears (concurrency.py). Neither the key nor a prompt enters a log or an error.
"""

import asyncio
import json
import logging
import os
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any, NoReturn

import openai
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice

from dream_ray.chat.concurrency import AdaptiveLimit, Gate, HeldBack, Silence
from dream_ray.chat.encode import data_uri
from dream_ray.chat.forms import dialogue, form_of
from dream_ray.chat.protocol import ENDPOINT_SILENT, ChatReply, ChatRequest
from dream_ray.chat.retry import Budget, RetryBudget, backoff_s
from dream_ray.config import ConfigError, OpenAIConfig
from dream_ray.images import BadImage
from dream_ray.prompts import Templates

REFUSALS = (429, 503, 529)
"""Statuses by which an endpoint, or a proxy before it, says that it has too much to do; 529 is Anthropic's."""

HUNG = ("timeout", "http_504")
"""Reasons of questions that got no answer in time: ours or a gateway's."""

DETAIL_CHARS = 300
"""How much of an endpoint's message an error keeps; some quote the whole request."""

logger = logging.getLogger(__name__)


class Load(Enum):
    """What the end of a call says of the load on the endpoint."""

    NO_CAUSE = "no load ends a call so"
    REFUSED = "the endpoint says that it is overloaded"
    BROKE = "load may have ended it so, or something else"


@dataclass(frozen=True)
class _Failure:
    """How a call ended without an answer.

    `again`: a retry may help. `conceded`: the next call asks for less, and is no retry. `load`: what it says of our load.
    """

    reason: str
    detail: str
    again: bool = False
    conceded: bool = False
    load: Load = Load.NO_CAUSE
    retry_after: float | None = None


class OpenAIChat:
    """See the module's contract."""

    def __init__(self, config: OpenAIConfig, templates: Templates, budget: Budget | None = None):
        """Reads the key from the environment. Raises ConfigError where the variable is not set.

        `budget` grants the retries; without one the client has its own.
        """
        self._config, self._templates = config, templates
        key = os.environ.get(config.api_key_env, "") if config.api_key_env else ""
        if config.api_key_env and not key:
            raise ConfigError(
                f"The environment variable {config.api_key_env} (api_key_env) is not set or empty, so there is no key for "
                f"{config.base_url}. Set it where the run is started, name another variable in api_key_env, or set "
                'api_key_env: "" for an endpoint that wants no key.'
            )
        self._key = key
        self._client = openai.AsyncOpenAI(
            api_key=key or "none", base_url=config.base_url, max_retries=0, timeout=config.timeout_s
        )
        self._limit = AdaptiveLimit(config.max_concurrency)
        self._gate = Gate(self._limit, config.timeout_s)
        self._budget = budget or RetryBudget(config.max_retry_ratio)
        self._silence = Silence(config.silent_deadlines, config.timeout_s)
        self._structured = config.structured
        self._length_name = "max_tokens"
        self._other_model: str | None = None

    def __reduce__(self) -> NoReturn:
        """A pickle would carry the key; a client is made where it is to live."""
        raise TypeError(
            "An OpenAIChat cannot be pickled: send its config and make it there; api_key_env names the key."
        )

    @property
    def name(self) -> str:
        """The model and the backend."""
        return f"{self._config.model} ({self._config.backend})"

    async def ask(self, request: ChatRequest) -> ChatReply:
        """The model's answer, or None and the reason; several at once are meant to be asked."""
        if self._silence.lasts(time.monotonic()):
            return self._unasked()
        try:
            await self._gate.enter()
        except HeldBack as error:
            return ChatReply(None, "held_back", f"{error}; timeout_s is {self._config.timeout_s:g}", attempts=0)
        if self._silence.lasts(time.monotonic()):
            self._gate.leave()
            return self._unasked()
        self._budget.asked()
        deadline = time.monotonic() + self._config.timeout_s
        try:
            # Not before the slot is there, or the pictures of all that wait would lie in memory.
            messages = await asyncio.to_thread(self._messages, request)
        except BaseException as error:
            self._gate.leave()
            if isinstance(error, BadImage):
                return ChatReply(None, error.reason, error.detail, attempts=0)
            raise
        return await self._try(request, messages, deadline)

    def check_alive(self) -> None:
        """A client outlives what its endpoint does."""

    async def _try(self, request: ChatRequest, messages: list[dict[str, Any]], deadline: float) -> ChatReply:
        """Call until there is an answer or no sense in another call. A slot of the gate is held at the start."""
        attempts = retries = 0
        while True:
            attempts += 1
            outcome = await self._call(self._arguments(request, messages), deadline)
            if isinstance(outcome, ChatCompletion):
                self._silence.broken()
                return _reply(outcome, attempts)
            if outcome.again:
                wait = backoff_s(retries, outcome.load is Load.REFUSED, outcome.retry_after, self._limit.fails_most)
                obstacle = await self._obstacle(wait, deadline)
                retries += 1
            else:
                wait, obstacle = 0.0, "" if outcome.conceded else "no retry helps"
            if not obstacle:
                await asyncio.sleep(wait)
                obstacle = await self._enter_again(deadline)
            if obstacle:
                if outcome.reason in HUNG:
                    self._silence.timed_out(deadline - self._config.timeout_s, time.monotonic())
                detail = f"{outcome.detail}; {obstacle}" if outcome.again else outcome.detail
                return ChatReply(None, outcome.reason, detail, attempts=attempts)

    def _unasked(self) -> ChatReply:
        config = self._config
        return ChatReply(
            None,
            ENDPOINT_SILENT,
            f"{config.base_url} (model {config.model}) let {config.silent_deadlines} deadlines of {config.timeout_s:g} s, one "
            "after the other, pass without an answer to any question (timeout_s, silent_deadlines), so no more are asked",
            attempts=0,
        )

    async def _obstacle(self, wait: float, deadline: float) -> str:
        """Why there is no retry after `wait` seconds, or nothing; it is paid for then."""
        if time.monotonic() + wait >= deadline:
            return f"no time for a retry within timeout_s ({self._config.timeout_s:g})"
        if not await self._budget.take():
            return f"the retry budget (max_retry_ratio {self._config.max_retry_ratio:g}) is spent"
        return ""

    async def _enter_again(self, deadline: float) -> str:
        """Wait for a slot; why there was none, or nothing."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._gate.enter(again=True)
        except TimeoutError:
            return f"no slot for a retry within timeout_s ({self._config.timeout_s:g})"
        except HeldBack as error:
            return str(error)
        return ""

    async def _call(self, arguments: dict[str, Any], deadline: float) -> ChatCompletion | _Failure:
        """One call in a slot of the gate, which is given back."""
        started = time.monotonic()
        rest = 0.0
        try:
            outcome = await self._send(arguments, deadline)
            now, others = time.monotonic(), self._gate.in_flight - 1
            match outcome:
                case _Failure(load=Load.REFUSED):
                    rest = self._limit.refused(started, now, others, outcome.retry_after)
                case _Failure(load=Load.BROKE):
                    rest = self._limit.broke(started, now, others)
                case _Failure():
                    self._limit.failed(started, now)
                case _:
                    self._limit.answered(started, now)
            return outcome
        finally:
            self._gate.leave(rest)

    async def _send(self, arguments: dict[str, Any], deadline: float) -> ChatCompletion | _Failure:
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                completion: ChatCompletion = await self._client.chat.completions.create(**arguments)
        except (TimeoutError, openai.APITimeoutError):
            return _Failure("timeout", f"no reply within timeout_s ({self._config.timeout_s:g})", load=Load.BROKE)
        except openai.APIStatusError as error:
            return self._status_failure(error, arguments)
        except openai.APIConnectionError as error:
            cause = type(error.__cause__ or error).__name__
            return _Failure("connection_failed", cause, again=True, load=Load.BROKE)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:  # the package lets the decoder's own errors through
            return _Failure("reply_malformed", f"the endpoint's reply is no JSON: {_short(error)}", again=True)
        if not _is_completion(completion):
            return _Failure("reply_malformed", "the endpoint's reply is no chat completion", again=True)
        self._note_model(completion.model)
        return completion

    def _status_failure(self, error: openai.APIStatusError, arguments: dict[str, Any]) -> _Failure:
        """What a 4xx or 5xx means for the question."""
        status, message = error.status_code, self._message(error)
        if status in (400, 422) and self._concede(error, message, arguments):
            return _Failure(f"http_{status}", message, conceded=True)
        if error.code == "insufficient_quota":  # comes as a 429, but no waiting helps
            return _Failure("insufficient_quota", message)
        load = Load.REFUSED if status in REFUSALS else Load.BROKE if status >= 500 else Load.NO_CAUSE
        again = load is not Load.NO_CAUSE or status in (408, 409)
        retry_after = _retry_after(error) if again else None
        return _Failure(f"http_{status}", message, again, load=load, retry_after=retry_after)

    def _concede(self, error: openai.APIStatusError, message: str, arguments: dict[str, Any]) -> bool:
        """True where the call had something optional that the endpoint does not take; it is not sent again then."""
        about = f"{error.param or ''} {message}".lower()
        if "response_format" in arguments and any(word in about for word in ("response_format", "json_schema")):
            if self._structured:
                self._structured = False
                logger.warning(
                    "%s takes no response_format; the prompt alone asks for the form from now on.", self.name
                )
            return True
        if "max_tokens" in arguments and "max_completion_tokens" in about:
            self._length_name = "max_completion_tokens"
            return True
        return False

    def _message(self, error: openai.APIStatusError) -> str:
        """The endpoint's own words, bounded, without the key that some endpoints repeat."""
        text = error.message
        if self._key:
            text = text.replace(self._key, "<key>")
        if error.status_code == 404:  # a wrong name or a wrong address, and ray.serve.llm says nothing but the number
            text = f"asked for the model {self._config.model!r} at {self._config.base_url}: {text}"
        return text[:DETAIL_CHARS]

    def _note_model(self, model: str | None) -> None:
        """Say once where another model answers than the one asked for; an alias contains the name or is contained in it."""
        asked = self._config.model
        if model and model != self._other_model and model not in asked and asked not in model:
            self._other_model = model
            logger.warning("The endpoint was asked for the model %s and answers as %s.", asked, model[:DETAIL_CHARS])

    def _messages(self, request: ChatRequest) -> list[dict[str, Any]]:
        """The dialogue as the protocol wants it, the images before the first text. Raises BadImage."""
        turns = dialogue(self._templates.render(request.task, request.fields), request)
        messages: list[dict[str, Any]] = [{"role": speaker, "content": text} for speaker, text in turns]
        if request.images:
            uris = [data_uri(image, self._config.max_pixels) for image in request.images]
            parts = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
            messages[0]["content"] = [*parts, {"type": "text", "text": messages[0]["content"]}]
        return messages

    def _arguments(self, request: ChatRequest, messages: list[dict[str, Any]]) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "model": self._config.model,
            "messages": messages,
            "temperature": self._config.temperature,
            self._length_name: self._config.max_tokens,
        }
        if not self._key:  # the package insists on a key, and sends it unless told not to
            arguments["extra_headers"] = {"Authorization": openai.Omit()}
        schema = form_of(request.task).schema
        if self._structured and schema is not None:
            form = {"name": request.task.value, "strict": True, "schema": schema}
            arguments["response_format"] = {"type": "json_schema", "json_schema": form}
        return arguments


def _is_completion(completion: object) -> bool:
    """False where the body is JSON of another shape: the package checks no types."""
    if not isinstance(completion, ChatCompletion) or not isinstance(completion.choices, list) or not completion.choices:
        return False
    choice = completion.choices[0]
    return (
        isinstance(choice, Choice)
        and isinstance(choice.message, ChatCompletionMessage)
        and isinstance(choice.message.content, str | None)
    )


def _reply(completion: ChatCompletion, attempts: int) -> ChatReply:
    """What came back, with what it cost, whether it is an answer or not."""
    choice, usage = completion.choices[0], completion.usage
    details = usage.prompt_tokens_details if usage else None
    refusal = choice.message.refusal
    text, reason, detail = choice.message.content or "", None, ""
    if refusal or choice.finish_reason == "content_filter":
        reason, detail = "refused_by_endpoint", _short(refusal or "content filter")
    elif choice.finish_reason == "length":
        reason, detail = "truncated", f"{usage.completion_tokens if usage else '?'} tokens; raise max_tokens"
    return ChatReply(
        text=None if reason else text,
        reason=reason,
        detail=detail,
        prompt_tokens=(usage.prompt_tokens or 0) if usage else 0,
        completion_tokens=(usage.completion_tokens or 0) if usage else 0,
        cached_tokens=(details.cached_tokens or 0) if details else 0,
        attempts=attempts,
    )


def _retry_after(error: openai.APIStatusError) -> float | None:
    """The seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); None where there is none to read."""
    value = error.response.headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if seconds < float("inf") else None


def _short(message: object) -> str:
    return str(message)[:DETAIL_CHARS]
