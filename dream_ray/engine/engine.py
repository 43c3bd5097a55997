"""A vLLM engine on a thread of its own: prompts in, futures out, and no pause between one batch and the next.

Contract: `Engine` starts vLLM's `LLMEngine` and calls it, and its processor, from one thread only. `submit` hands over
some prompts together and returns one future each: the engine's `RequestOutput`, or a `Rejected` that says why this one
prompt cannot be sampled. A future raises only for what spoils every row: EngineError for an adapter or an image that the
engine ignores, EngineDied for an engine that broke, whose process ended, or that has work and gives no sign of life for
`timeout_s`; from then on `check_alive` raises as well. `close` ends the thread and with it the engine's processes. Knows
nothing of Ray and of our records.

Why not `vllm.LLM`: it takes the next prompts only when the last of the present ones is done. Why not `AsyncLLM`: it
always starts the engine in a process of its own, which doubles the start on a CPU and can outlive a killed actor.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from dream_ray.stopwatch import Stopwatch

if TYPE_CHECKING:
    from PIL.Image import Image
    from vllm import LLMEngine, RequestOutput, SamplingParams
    from vllm.inputs import EngineInput, TextPrompt
    from vllm.lora.request import LoRARequest

CANARY_TEXT = "The quick brown fox jumps over the lazy dog. In an emergency one should first of all"
"""What an adapter's effect is measured on: everyday text of some 20 tokens."""

DETAIL_CHARS = 300
"""How much of vLLM's message about a prompt is kept; it may quote the whole prompt."""


class EngineError(RuntimeError):
    """The engine cannot sample, or samples something else than asked for; no row of it can be trusted."""


class EngineDied(RuntimeError):
    """The engine broke or hangs, perhaps because of a prompt in it. Nothing comes out of it any more: start another."""


def end_process() -> None:
    """End this process and what it started, at once: an engine that hangs can be left in no other way.

    Python's own process that removes shared memory is spared: it does so once all others are gone, and ends.
    """
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "multiprocessing.resource_tracker" not in " ".join(child.cmdline()):
                child.kill()
    os._exit(1)


@dataclass(frozen=True)
class Query:
    """One prompt for the engine.

    `text` is the rendered chat; `special_tokens` False says that it holds those already that the tokenizer would add.
    `image_keys` name the content of `images`. `adapter` is a local folder. `expected_ids`, where given, is what
    training makes of the prompt, image tokens included: the engine has to make the same of it.
    """

    text: str
    special_tokens: bool
    images: tuple["Image", ...]
    image_keys: tuple[str, ...]
    params: "SamplingParams"
    max_tokens: int
    adapter: str | None
    expected_ids: tuple[int, ...] | None


@dataclass(frozen=True)
class Rejected:
    """A prompt that cannot be sampled; `reason` is a short word for counting, `detail` says more."""

    reason: str
    detail: str


Answer = Future["RequestOutput | Rejected"]


class Engine:
    """See the module's contract."""

    def __init__(self, arguments: dict[str, Any], timeout_s: float, worked: Stopwatch | None = None):
        """Start the engine with these EngineArgs; returns when it can sample. Raises whatever vLLM raises meanwhile.

        `worked` runs while the engine has work.
        """
        self._inbox: queue.SimpleQueue[tuple[Sequence[Query], list[Answer]] | None] = queue.SimpleQueue()
        self._pending: dict[str, Answer] = {}
        self._adapters: dict[str, LoRARequest] = {}
        self._ids = itertools.count()
        self._lora_ids = itertools.count(1)
        self._timeout_s = timeout_s
        self._worked = worked or Stopwatch()
        self._open: set[Answer] = set()
        """Answers that are neither given nor failed."""
        self._alive_at: float | None = None
        """When the engine last gave a sign of life, by the monotonic clock; None while it has no work."""
        self._end: tuple[str, Exception] | None = None
        """Why nothing comes out of the engine any more: in a word, and as the error of what is asked, which may quote it."""
        self._hangs = False
        self._process: Any = None
        """What vLLM knows of the engine's own process, where it has one; its `engine_dead` says that it ended."""
        self._closed = threading.Event()
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(arguments, started), name="vllm-engine", daemon=True)
        self._thread.start()
        started.result()
        threading.Thread(target=self._watch, name="vllm-engine-watch", daemon=True).start()

    def submit(self, queries: Sequence[Query]) -> list[Answer]:
        """Sample some prompts. They are admitted together, so that how they share the engine's steps does not vary."""
        answers: list[Answer] = [Future() for _ in queries]
        self._open.update(answers)
        for answer in answers:
            answer.add_done_callback(self._open.discard)
        self._inbox.put((queries, answers))
        if self._end is not None:
            _fail(answers, self._end[1])
        return answers

    def check_alive(self) -> None:
        """Raise EngineDied where nothing comes out of the engine any more: it broke, hangs, or was closed."""
        if self._end is not None:
            raise EngineDied(
                f"The vLLM engine can sample no more ({self._end[0]}). It takes a new one, in a new process."
            )

    def close(self) -> None:
        """Stop the engine and its processes; prompts under way fail. A second call does nothing."""
        self._closed.set()
        self._inbox.put(None)
        if not self._hangs:  # a thread that hangs is waited for in vain; it ends with the process
            self._thread.join()

    def _fail_all(self, word: str, error: Exception) -> None:
        """Fail what was asked of the engine, and from now on what is asked."""
        self._end = self._end or (word, error)
        _fail(self._open.copy(), error)

    def _watch(self) -> None:
        """Fail what is asked of an engine that hangs, or whose process ended: vLLM's client waits for that one's answer."""
        while not self._closed.wait(min(1.0, self._timeout_s / 4)):
            if getattr(self._process, "engine_dead", False):
                self._hangs = True
                return self._fail_all("its process ended", EngineDied("the engine's process ended without a word"))
            alive_at = self._alive_at
            if alive_at is not None and time.monotonic() - alive_at > self._timeout_s:
                self._hangs = True
                silence = f"the engine has had work for {self._timeout_s:g} s without finishing a step"
                return self._fail_all("it hangs", EngineDied(silence))

    def _run(self, arguments: dict[str, Any], started: "Future[None]") -> None:
        try:
            from vllm import EngineArgs, LLMEngine

            # A CPU engine in this process says at every prompt that its thread count stays as it is. (Not by the level: vLLM
            # sets those of its loggers anew while the engine starts.)
            chatty = logging.getLogger("vllm.v1.worker.cpu_worker")
            chatty.addFilter(lambda record: "torch.set_num_threads" not in record.getMessage())
            engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        except BaseException as error:  # whatever it is, the constructor that waits has to raise it
            started.set_exception(error)
            return
        self._process = getattr(engine.engine_core, "resources", None)
        started.set_result(None)
        try:
            while self._admit_waiting(engine):
                self._step(engine)
            self._fail_all("it was closed", EngineError("The engine was closed while this prompt was in it."))
        except BaseException as error:
            self._fail_all(type(error).__name__, _died(error))  # first, as the remains of a broken engine may not end
        self._alive_at = None
        self._worked.run(False)
        engine.renderer.shutdown()
        engine.engine_core.shutdown()

    def _admit_waiting(self, engine: "LLMEngine") -> bool:
        """Admit what waits; where the engine has nothing to do, wait for something. False when the engine is to end."""
        while True:
            busy = engine.has_unfinished_requests()
            self._alive_at = time.monotonic() if busy else None
            self._worked.run(busy)
            try:
                work = self._inbox.get(block=not busy)
            except queue.Empty:
                return True
            if work is None:
                return False
            self._alive_at = time.monotonic()
            self._worked.run(True)
            try:
                self._admit(engine, *work)
            except Exception as error:
                admitted = [key for key, answer in self._pending.items() if answer in work[1]]
                engine.abort_request(admitted)
                for key in admitted:
                    del self._pending[key]
                _fail(work[1], error if isinstance(error, EngineError) else _died(error))

    def _admit(self, engine: "LLMEngine", queries: Sequence[Query], answers: Sequence[Answer]) -> None:
        """Give the engine each query that it can sample, answer the others."""
        for adapter in dict.fromkeys(query.adapter for query in queries):
            if adapter is not None and adapter not in self._adapters:
                self._adapters[adapter] = self._load(engine, adapter)
        for query, answer in zip(queries, answers, strict=True):
            prompt = _render(engine, query)
            if isinstance(prompt, Rejected):
                answer.set_result(prompt)
                continue
            key = str(next(self._ids))
            lora = None if query.adapter is None else self._adapters[query.adapter]
            engine.add_request(key, prompt, query.params, lora_request=lora)
            self._pending[key] = answer

    def _step(self, engine: "LLMEngine") -> None:
        for output in engine.step():
            if output.finished:
                self._pending.pop(output.request_id).set_result(output)

    def _load(self, engine: "LLMEngine", adapter: str) -> "LoRARequest":
        """Load an adapter and prove that it changes what the model says. Raises EngineError."""
        from vllm.lora.request import LoRARequest

        # Alone in the engine the two measurements have the same shapes, so that only the adapter can tell them apart.
        while engine.has_unfinished_requests():
            self._step(engine)
        # A number of its own for each try: vLLM answers a number that it knows with the adapter that it knows.
        number = next(self._lora_ids)
        lora = LoRARequest(f"adapter-{number}", number, adapter)
        try:
            engine.add_lora(lora)
        except Exception as error:
            raise EngineError(
                f"vLLM cannot load the adapter {adapter}: {error}. It has to be a folder that PEFT saved, for this "
                "base model, with lora.rank as its rank and target modules in the language model only."
            ) from error
        if self._canary(engine, None) == self._canary(engine, lora):
            raise EngineError(
                f"The adapter {adapter} changes no log-probability of a fixed text of some 20 tokens, so its answers "
                "would be the base model's. Either it was never trained (its B matrices are zero) or vLLM ignores its "
                "modules: compare the names in its adapter_model.safetensors with the base model's, and "
                "lora.target_modules."
            )
        return lora

    def _canary(self, engine: "LLMEngine", lora: "LoRARequest | None") -> tuple[float, ...]:
        """The log-probabilities of the tokens of CANARY_TEXT; the engine has to be idle."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        engine.add_request(f"canary-{next(self._ids)}", {"prompt": CANARY_TEXT}, params, lora_request=lora)
        finished: list[RequestOutput] = []
        while engine.has_unfinished_requests():
            finished += [output for output in engine.step() if output.finished]
        tokens = finished[0].prompt_logprobs or []
        return tuple(entry.logprob for position in tokens if position for entry in position.values())


def require_same_tokens(found: Sequence[int], expected: Sequence[int]) -> None:
    """Raise EngineError unless the engine reads a prompt as training does, image tokens included."""
    if list(found) == list(expected):
        return
    at = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected))
    )
    raise EngineError(
        f"The engine reads a prompt with an image as {len(found)} tokens, training as {len(expected)}; they differ "
        f"from token {at} on. Sampled answers would not fit what is trained, and the image may not reach the model. "
        "Check that the model folder's processor and chat template are the model's own, and that vLLM supports this "
        "architecture."
    )


def _render(engine: "LLMEngine", query: Query) -> "EngineInput | Rejected":
    """The query as the engine takes it, tokens and pixels, or why it cannot be sampled. Raises EngineError."""
    content: TextPrompt = {"prompt": query.text}
    if query.images:
        content["multi_modal_data"] = {"image": list(query.images)}
        content["multi_modal_uuids"] = {"image": list(query.image_keys)}
    # Without a limit of vLLM's: it would refuse a long text without saying how long it is.
    tokenizing = dataclasses.replace(
        engine.renderer.default_cmpl_tok_params, add_special_tokens=query.special_tokens, max_total_tokens=None
    )
    try:
        (prompt,) = engine.renderer.render_cmpl([content], tokenizing)
    except ValueError as error:
        return Rejected("prompt_unusable", str(error)[:DETAIL_CHARS])
    ids = prompt["prompt_token_ids"]
    if query.expected_ids is not None:
        require_same_tokens(ids, query.expected_ids)
    placed = len(prompt.get("mm_placeholders", {}).get("image", ()))
    if placed != len(query.images):
        return Rejected("images_not_placed", f"{len(query.images)} images, {placed} of them in the engine's prompt")
    room = engine.model_config.max_model_len
    if len(ids) + query.max_tokens > room:
        return Rejected(
            "prompt_too_long",
            f"{len(ids)} prompt tokens + {query.max_tokens} for the answer, max_model_len is {room}",
        )
    return prompt


def _died(error: BaseException) -> EngineDied:
    return EngineDied(f"{type(error).__name__}: {str(error)[:DETAIL_CHARS]}")


def _fail(answers: Iterable[Answer], error: Exception) -> None:
    for answer in list(answers):
        with contextlib.suppress(InvalidStateError):  # answered already, perhaps at this moment
            answer.set_exception(error)
