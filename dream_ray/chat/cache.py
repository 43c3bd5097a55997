"""The response cache: a reply that was paid for is not paid for again, by whichever actor or run asks.

    <cache>/3fa/3fa9…c1.json    one good reply, named by the sha256 of everything that it depends on

One small object an entry, on any pyarrow filesystem. Its key is its place, so actors and runs share a cache without a
lock, an index or a server: a reply is there for all as soon as its file is, two who write the same entry write the same
thing, and a lookup costs one open, however many entries there are. A log or a database would take less disk (a file
takes a block of 4 KiB for some 200 bytes), but needs one writer or a file system with locks, and object stores have none.

Contract: only good replies are kept: what failed, was refused by the endpoint or cut off is asked again. A reply that its
reader cannot read is forgotten once the retry is unreadable too (`ask` says so through `ChatReply.forget`), so no failure
is pinned. If the retry is readable both stay, and the row comes out the same next time. A file that is torn or not ours is
a miss, logged and counted. Storage that does not answer costs money, never a row: the model is asked, and a warning
written. Identical questions that one process asks at the same time are asked once.
"""

import asyncio
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dream_ray import files
from dream_ray.chat.protocol import ChatModel, ChatReply, ChatRequest
from dream_ray.config import ConfigError, OpenAIConfig, VllmConfig
from dream_ray.prompts import Templates

T = TypeVar("T")

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every key; raised when backends come to put the same request to the model in other words or another form."""
SHARD_DIGITS = 3
"""Digits of the key that name its folder: 4096 folders, so 244 entries in each at a million."""
THREADS = 32
"""Lookups under way at once: against an object store they wait, some 30 ms each."""
MAX_ENTRY_BYTES = 4_000_000
"""Largest file that is read as an entry; a reply is far below it."""


class _Entry(BaseModel):
    """What a file holds. The key is in it too, so that a file under a wrong name is seen to be wrong."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: str
    text: str
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    cached_tokens: int = Field(ge=0)
    attempts: int = Field(ge=0)


class ResponseCache:
    """Replies by key. `counts` says what became of lookups and writes: hit, miss, bad_entry, unreadable_storage, kept,
    not_kept, forgotten."""

    def __init__(self, uri: str):
        self._uri = uri
        self._filesystem, self._root = files.resolve(uri)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="cache")
        self.counts: Counter[str] = Counter()

    async def find(self, key: str) -> ChatReply | None:
        """The reply under a key, None where there is no good one."""
        return await self._off_loop(lambda: self._read(key))

    async def keep(self, key: str, reply: ChatReply) -> None:
        """Store a reply that has a text, whole or not at all."""
        await self._off_loop(lambda: self._write(key, reply))

    async def forget(self, key: str) -> None:
        """Remove an entry; no error where there is none."""
        await self._off_loop(lambda: self._remove(key))

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _path(self, key: str) -> str:
        return files.join(self._root, key[:SHARD_DIGITS], f"{key}.json")

    def _read(self, key: str) -> ChatReply | None:
        try:
            with self._filesystem.open_input_stream(self._path(key)) as stream:
                content = bytes(stream.read(MAX_ENTRY_BYTES))
        except FileNotFoundError:
            self.counts["miss"] += 1
            return None
        except OSError as error:
            log.warning("cache: %s could not be read, so the model is asked: %s", self._path(key), error)
            self.counts["unreadable_storage"] += 1
            return None
        try:
            entry = _Entry.model_validate_json(content)
        except ValidationError:
            entry = None
        if entry is None or entry.key != key:
            log.warning("cache: %s is torn or no entry of ours, so the model is asked", self._path(key))
            self.counts["bad_entry"] += 1
            return None
        self.counts["hit"] += 1
        return ChatReply(
            entry.text,
            prompt_tokens=entry.prompt_tokens,
            completion_tokens=entry.completion_tokens,
            cached_tokens=entry.cached_tokens,
            attempts=entry.attempts,
        )

    def _write(self, key: str, reply: ChatReply) -> None:
        content = {
            "key": key,
            "text": reply.text,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "cached_tokens": reply.cached_tokens,
            "attempts": reply.attempts,
        }
        try:
            path = files.join(self._uri, key[:SHARD_DIGITS], f"{key}.json")
            files.write_atomic(path, json.dumps(content, ensure_ascii=False).encode())
        except (OSError, UnicodeEncodeError) as error:
            log.warning("cache: a reply could not be kept and will be paid for again: %s", error)
            self.counts["not_kept"] += 1
        else:
            self.counts["kept"] += 1

    def _remove(self, key: str) -> None:
        try:
            self._filesystem.delete_file(self._path(key))
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("cache: an unreadable reply could not be removed: %s", error)
            return
        self.counts["forgotten"] += 1


class CachedChat:
    """A chat model that is asked only what the cache does not know."""

    def __init__(self, chat: ChatModel, config: OpenAIConfig | VllmConfig, templates: Templates, cache_uri: str):
        self._chat, self._templates = chat, templates
        self._identity = config.identity()
        self.cache = ResponseCache(cache_uri)
        self._under_way: dict[str, asyncio.Task[ChatReply]] = {}

    @property
    def name(self) -> str:
        """The model's own name."""
        return self._chat.name

    def key(self, request: ChatRequest) -> str:
        """sha256, in hex, of all that a reply depends on: the model and its settings, the question and its wording."""
        # The task is in the fingerprint: it decides the form that the endpoint is asked for.
        rendered = self._templates.render(request.task, request.fields)
        content = json.dumps([FORMAT, self._identity, rendered, request.fingerprint], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    async def ask(self, request: ChatRequest) -> ChatReply:
        """The kept reply, or the model's, which is kept if it is good."""
        if request.fresh:
            return await self._chat.ask(request)
        key = self.key(request)
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._fetch(key, request))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key))
        # Shielded: a caller that gives up loses its own wait, not the reply that others wait for and that is paid for.
        return await asyncio.shield(task)

    def check_alive(self) -> None:
        """Raise what the model itself raises."""
        self._chat.check_alive()

    async def _fetch(self, key: str, request: ChatRequest) -> ChatReply:
        reply = await self.cache.find(key)
        if reply is None:
            reply = await self._chat.ask(request)
            if reply.text is None:
                return reply
            await self.cache.keep(key, reply)
        return replace(reply, forget=lambda: self.cache.forget(key))


def check_cache(uri: str) -> None:
    """Raise ConfigError where the cache cannot be written: found out now, not after a night of replies that were lost."""
    probe = files.join(uri, "writable")
    try:
        files.write_atomic(probe, b"")
    except OSError as error:
        raise ConfigError(
            f"cache = {uri!r} cannot be written ({error}), so every reply would be paid for again after a stop. Name a "
            "folder that all machines of the run can write, or leave `cache` out to use the run directory."
        ) from None
