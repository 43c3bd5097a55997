"""The rollout sampler: a Ray Data actor around a vLLM engine.

Contract: `Sampler` takes tables of `SampleRequest` rows and returns, in their order, one row per sample with the
columns `job`, `part`, `prompt` and `observations` of its request, `rollout` (Rollout or null) and `error` (ErrorRow or
null, stage "rollout", row_id the prompt's id). A request that cannot be sampled is one row with an error; its
neighbours lose nothing. All n samples of a request are one request of the engine, which reads prompt and images once;
sample k has the seed `seed` + k (vLLM gives that to the k-th child of a request, and a test checks it). Answers cut at
max_tokens are rollouts with finish_reason "length". An adapter without effect and an image that the engine does not
see raise EngineError.

Where adapters are merged (`rollout.adapters`), the engine is exchanged when a batch needs other weights; batches come in
the order of the pass, so that this happens once per policy.

The engine stays full while a batch waits for its last answer, because Ray Data makes several calls at once
(`sampler_arguments`). When the dataset ends, Ray Data drops the actor, `__del__` closes the engine.
"""

import asyncio
import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dream_ray.config import ImageConfig, RolloutConfig, StudentConfig
from dream_ray.engine.engine import Engine, EngineError, Query, Rejected
from dream_ray.engine.settings import actor_options, base_arguments
from dream_ray.images import BadImage
from dream_ray.outcomes import struct_of
from dream_ray.records import ErrorRow, Rollout, from_table, stable_id, to_row, to_table
from dream_ray.rollout.requests import SampleRequest
from dream_ray.scratch import ScratchFolder
from dream_ray.stopwatch import GpuWatch, Stopwatch
from dream_ray.student import StudentReader, Unreadable
from dream_ray.train.policy import Policy, fetch_folder, fetch_model, merge_adapter

if TYPE_CHECKING:
    from PIL.Image import Image
    from vllm import RequestOutput

STAGE = "rollout"
"""The stage's name in error rows."""

IMAGES_PER_PROMPT = 8
"""Most images of a dialogue. vLLM wants a limit before it starts; a prompt over it goes to the errors table."""

ADAPTERS_AT_ONCE = 2
"""Adapters whose rows share the engine's steps; rows of a third wait. A pass has at most policy 0 and one more."""

CALLS_AT_ONCE = 4
"""Batches in the engine at a time: the next ones fill the places of a batch whose last answers are long."""

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM 0.32 takes as max_lora_rank (vllm.config.lora.MaxLoRARanks); an adapter may have any rank below."""


def engine_arguments(student: StudentConfig, rollout: RolloutConfig, lora_rank: int, model: str) -> dict[str, Any]:
    """vLLM's EngineArgs for a student in the local folder `model`; a rank of 0 says that there are no adapters. Raises
    ValueError for a rank over 512."""
    ranks = [rank for rank in LORA_RANKS if rank >= lora_rank]
    if not ranks:
        raise ValueError(
            f"lora.rank = {lora_rank}, but vLLM serves adapters up to rank {LORA_RANKS[-1]}. Set lora.rank lower."
        )
    arguments = base_arguments(
        model=model,
        dtype=rollout.dtype,
        max_model_len=student.max_model_len,
        images=IMAGES_PER_PROMPT,
        gpus=rollout.gpus_per_engine,
        kv_cache_gib=rollout.kv_cache_gib,
        trust_remote_code=student.trust_remote_code,
    )
    # In bfloat16 two logits of 16 differ by an eighth or not at all, and of two alike greedy sampling takes the word that comes
    # first in the vocabulary: for 3 to 4 % of the demo's held-out prompts a refusal and help were alike (docs/learning.md).
    arguments["hf_overrides"] = {"head_dtype": "float32"}
    # Each image comes once a pass: a cache of processed pixels (4 GiB by default) would keep what nobody asks for.
    arguments["mm_processor_cache_gb"] = 0
    if lora_rank and not rollout.merges_adapters:
        arguments |= {"enable_lora": True, "max_lora_rank": ranks[0], "max_loras": ADAPTERS_AT_ONCE}
    return arguments


def sampler_arguments(rollout: RolloutConfig) -> dict[str, Any]:
    """What `map_batches` needs beside the class: the actors, their resources and their environment."""
    import ray.data

    least, most = rollout.pool
    return {
        "compute": ray.data.ActorPoolStrategy(
            min_size=least, max_size=most, max_concurrent_calls_per_actor=CALLS_AT_ONCE
        ),
        **actor_options(rollout.gpus_per_engine, most),
    }


class Sampler:
    """Ray Data actor class (batch_format="pyarrow"); see the module's contract."""

    def __init__(
        self,
        student: StudentConfig,
        rollout: RolloutConfig,
        lora_rank: int,
        images: ImageConfig,
        gpus: GpuWatch | None = None,
    ):
        """Prepare; the engine starts with the first batch, on the weights that this batch needs."""
        self._worked = gpus.watch() if gpus else Stopwatch()
        self._student, self._rollout, self._lora_rank = student, rollout, lora_rank
        self._folder = ScratchFolder("sampler")
        self._model = str(fetch_model(student.model))
        self._reader = StudentReader(Path(self._model), student, images)
        self._adapters: dict[str, str] = {}
        self._checked_tokens = False
        self._engine: Engine | None = None
        self._merged = f"{self._folder.name}/merged"
        """The folder of the running engine's weights, where an adapter is merged into them."""
        self._weights: str | None = None
        """The adapter that is merged into the running engine's weights, None for the base model's."""
        self._calls = 0
        """Batches in the running engine; it is exchanged for another only when there are none."""
        self._changed = asyncio.Condition()

    def __del__(self) -> None:
        """Close the engine; Ray Data drops its reference to this object when the dataset ends."""
        engine: Engine | None = getattr(self, "_engine", None)
        if engine is not None:
            engine.close()

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """The samples of a batch of requests. Raises EngineError for what spoils every row, EngineDied where another
        engine may do."""
        requests = from_table(SampleRequest, batch)
        loaded = await asyncio.gather(*(asyncio.to_thread(self._load, request) for request in requests))
        queries = [
            item if isinstance(item, Rejected) else self._query(request, item)
            for request, item in zip(requests, loaded, strict=True)
        ]
        answers = iter(await self._sample([query for query in queries if isinstance(query, Query)]))
        outcomes = [
            samples(request, query if isinstance(query, Rejected) else next(answers))
            for request, query in zip(requests, queries, strict=True)
        ]
        return _table(batch, outcomes)

    @staticmethod
    def set_aside(row: pa.Table, reason: str, detail: str, attempts: int) -> pa.Table:
        """What comes of a request that is not to be sampled."""
        (request,) = from_table(SampleRequest, row)
        return _table(row, [[ErrorRow(STAGE, request.prompt.prompt_id, reason, detail, attempts)]])

    async def _sample(self, queries: Sequence[Query]) -> "list[RequestOutput | Rejected]":
        """An answer to each query, from an engine with the weights that it needs."""
        if not self._rollout.merges_adapters:
            return await self._submit(None, queries)
        answers: dict[int, RequestOutput | Rejected] = {}
        for adapter in dict.fromkeys(query.adapter for query in queries):
            mine = {at: query for at, query in enumerate(queries) if query.adapter == adapter}
            plain = [dataclasses.replace(query, adapter=None) for query in mine.values()]
            answers |= dict(zip(mine, await self._submit(adapter, plain), strict=True))
        return [answers[at] for at in range(len(queries))]

    async def _submit(self, weights: str | None, queries: Sequence[Query]) -> "list[RequestOutput | Rejected]":
        """Hand queries to the engine with the given adapter merged, exchanging the engine where it has another."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._calls or self._weights == weights)
            if self._engine is None or self._weights != weights:
                await asyncio.to_thread(self._start, weights)
            self._calls += 1
            assert self._engine is not None
            submitted = self._engine.submit(queries)
        try:
            return list(await asyncio.gather(*map(asyncio.wrap_future, submitted)))
        finally:
            async with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def _start(self, weights: str | None) -> None:
        """Close the engine, if there is one, and start one with the given adapter merged into its weights."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        shutil.rmtree(self._merged, ignore_errors=True)
        model = self._model
        if weights is not None:
            require_effect(weights)
            # Kept as long as the engine: vLLM reads the processor from it when the first image comes. A new name each
            # time: vLLM remembers what it read by the folder's name.
            self._merged = tempfile.mkdtemp(prefix="merged-", dir=self._folder.name)
            model = merge_adapter(
                Policy("merged", self._model, weights), f"{self._merged}/model", dtype=self._rollout.dtype
            )
        arguments = engine_arguments(self._student, self._rollout, self._lora_rank, model)
        self._engine = Engine(arguments, self._rollout.engine_timeout_s, self._worked)
        self._weights = weights

    def _load(self, request: SampleRequest) -> "tuple[Image, ...] | Rejected":
        """The pixels of a request's images."""
        images = request.prompt.images
        if len(images) > IMAGES_PER_PROMPT:
            return Rejected("too_many_images", f"{len(images)} images, the engine takes {IMAGES_PER_PROMPT}")
        try:
            return tuple(self._reader.pixels(request.prompt.turns))
        except BadImage as error:
            return Rejected(error.reason, error.detail)

    def _query(self, request: SampleRequest, images: "tuple[Image, ...]") -> Query | Rejected:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        try:
            text = self._reader.prompt(request.prompt.turns)
        except Unreadable as error:
            return Rejected(error.reason, error.detail)
        expected_ids = None
        if images and not self._checked_tokens:
            # The first prompt with an image stands for all: they share processor and template.
            self._checked_tokens = True
            expected_ids = self._reader.ids(text, images)
        return Query(
            text=text,
            special_tokens=False,
            images=images,
            image_keys=tuple(image.sha256 for image in request.prompt.images),
            params=SamplingParams(
                n=request.n,
                temperature=request.temperature,
                top_p=request.top_p,
                max_tokens=request.max_tokens,
                seed=request.seed,
                output_kind=RequestOutputKind.FINAL_ONLY,
            ),
            max_tokens=request.max_tokens,
            adapter=self._adapter_folder(request.adapter),
            expected_ids=expected_ids,
        )

    def _adapter_folder(self, uri: str | None) -> str | None:
        """The local folder of an adapter, fetched at its first use."""
        if uri is None:
            return None
        if uri not in self._adapters:
            self._adapters[uri] = str(fetch_folder(uri, Path(self._folder.name)))
        return self._adapters[uri]


def require_effect(adapter: str) -> None:
    """Raise EngineError for an adapter folder that cannot be read or that changes nothing: all its B matrices are zero."""
    from peft import load_peft_weights

    try:
        weights = load_peft_weights(adapter, device="cpu")
    except (OSError, ValueError) as error:
        raise EngineError(
            f"The adapter {adapter} cannot be read: {error}. It has to be a folder that PEFT saved."
        ) from error
    if not any(weight.any() for name, weight in weights.items() if "lora_B" in name):
        raise EngineError(
            f"The adapter {adapter} changes nothing: its B matrices are zero, so its answers would be the base model's. It "
            "was never trained, or another folder was meant."
        )


def samples(request: SampleRequest, answer: "RequestOutput | Rejected") -> list[Rollout | ErrorRow]:
    """What came of a request: a rollout per sample in the order of k, or one error where it was not sampled."""
    prompt_id = request.prompt.prompt_id
    if isinstance(answer, Rejected):
        return [ErrorRow(STAGE, prompt_id, answer.reason, answer.detail, 1)]
    found: list[Rollout | ErrorRow] = []
    for completion in sorted(answer.outputs, key=lambda completion: completion.index):
        k, seed = completion.index, request.seed + completion.index
        if completion.finish_reason not in ("stop", "length"):
            found.append(
                ErrorRow(STAGE, prompt_id, "sampling_interrupted", f"sample {k}: {completion.finish_reason}", 1)
            )
            continue
        found.append(
            Rollout(
                rollout_id=stable_id("rollout", request.policy, prompt_id, k, seed),
                prompt_id=prompt_id,
                policy=request.policy,
                k=k,
                seed=seed,
                text=completion.text,
                finish_reason=completion.finish_reason,
                prompt_tokens=len(answer.prompt_token_ids or ()),
                completion_tokens=len(completion.token_ids),
            )
        )
    return found


def _table(batch: pa.Table, outcomes: Sequence[Sequence[Rollout | ErrorRow]]) -> pa.Table:
    """The batch's columns repeated for each outcome of their row, with the outcomes beside them."""
    rows = [row for row, found in enumerate(outcomes) for _ in found]
    flat = [outcome for found in outcomes for outcome in found]
    # Arrow does not check required fields inside a struct; as columns of their own they are checked.
    to_table(Rollout, [outcome for outcome in flat if isinstance(outcome, Rollout)])
    rollouts = [to_row(outcome) if isinstance(outcome, Rollout) else None for outcome in flat]
    errors = [to_row(outcome) if isinstance(outcome, ErrorRow) else None for outcome in flat]
    table = batch.select(["job", "part", "prompt", "observations"]).take(pa.array(rows, pa.int64()))
    table = table.append_column("rollout", pa.array(rollouts, type=struct_of(Rollout)))
    return table.append_column("error", pa.array(errors, type=struct_of(ErrorRow)))
