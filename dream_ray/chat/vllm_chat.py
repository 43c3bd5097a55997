"""VllmChat: teacher or judge in a vLLM engine of this process's own.

Contract: the engine is ready when the object is. `ask` renders the request's template as one chat message, images first,
each within `max_pixels`, and holds the answer to the task's form (forms.py) while it is decoded: a bare word, a bare number
or a JSON object; answers in free text are free. Concurrent questions share the engine's steps. What one request breaks
comes back as a reply without text: "truncated" at max_tokens, a `BadImage` reason, too many images, a prompt that does not
fit. An engine that breaks or hangs raises EngineDied, for every later question and in `check_alive`, too, until a new object
is made. `close`, which the end of the object calls, ends the engine and its processes. Knows nothing of Ray.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from dream_ray.chat.encode import fitting
from dream_ray.chat.forms import dialogue, form_of
from dream_ray.chat.protocol import ChatReply, ChatRequest, Task
from dream_ray.config import ImageConfig, VllmConfig
from dream_ray.dialogue import rendered
from dream_ray.engine.engine import Engine, EngineError, Query, Rejected
from dream_ray.engine.settings import STRUCTURED, base_arguments
from dream_ray.images import BadImage, decode, sha256
from dream_ray.prompts import Templates
from dream_ray.stopwatch import GpuWatch
from dream_ray.train.policy import fetch_model

if TYPE_CHECKING:
    from PIL.Image import Image
    from vllm import RequestOutput, SamplingParams

IMAGES_PER_REQUEST = 32
"""Most images of a question, as many as the scorer takes; vLLM wants a limit before it starts."""

SEED = 0
"""Of sampling at a temperature above 0: the same question gets the same answer, whatever else is asked."""


class VllmChat:
    """See the module's contract."""

    def __init__(self, config: VllmConfig, templates: Templates, gpus: GpuWatch | None = None):
        """Load the model. Raises EngineError where it has no processor for images, and whatever vLLM raises."""
        from transformers import AutoProcessor, ProcessorMixin

        worked = gpus.watch() if gpus else None
        self._config, self._templates = config, templates
        # Chat models get images that were within the run's limits when they were ingested; these are the outer ones.
        self._images = ImageConfig()
        model = str(fetch_model(config.model))
        self._processor = AutoProcessor.from_pretrained(model, trust_remote_code=config.trust_remote_code)
        if not isinstance(self._processor, ProcessorMixin):
            raise EngineError(
                f"The model {config.model} brings a {type(self._processor).__name__} and no processor for images, so it "
                "cannot see what it has to judge. Name the folder of a vision-language model, with its processor and "
                "chat template."
            )
        self._engine = Engine(engine_arguments(config, model), config.engine_timeout_s, worked)

    def __del__(self) -> None:
        """Close the engine where the constructor came that far."""
        if hasattr(self, "_engine"):
            self.close()

    def close(self) -> None:
        """End the engine and its processes; questions under way fail. A second call does nothing."""
        self._engine.close()

    @property
    def name(self) -> str:
        """The model's folder and the backend."""
        return f"{self._config.model} ({self._config.backend})"

    async def ask(self, request: ChatRequest) -> ChatReply:
        """Answer one question. Raises what broke the engine."""
        if len(request.images) > IMAGES_PER_REQUEST:
            return ChatReply(
                None, "too_many_images", f"{len(request.images)} images, the engine takes {IMAGES_PER_REQUEST}"
            )
        try:
            images = await asyncio.to_thread(self._pixels, request)
        except BadImage as error:
            return ChatReply(None, error.reason, error.detail)
        query = self._query(request, images)
        if isinstance(query, Rejected):
            return ChatReply(None, query.reason, query.detail)
        (submitted,) = self._engine.submit([query])
        return reply_of(await asyncio.wrap_future(submitted))

    def check_alive(self) -> None:
        """Raise EngineDied where the engine broke, hangs, or was closed."""
        self._engine.check_alive()

    def _pixels(self, request: ChatRequest) -> "tuple[Image, ...]":
        from PIL.Image import Resampling

        images = [decode(content, self._images) for content in request.images]
        sizes = [fitting(image.size, self._config.max_pixels) for image in images]
        # Where the size is the same, this is a copy.
        return tuple(image.resize(size, Resampling.LANCZOS) for image, size in zip(images, sizes, strict=True))

    def _query(self, request: ChatRequest, images: "tuple[Image, ...]") -> Query | Rejected:
        spoken = dialogue(self._templates.render(request.task, request.fields), request)
        messages: list[dict[str, Any]] = [
            {"role": role, "content": [{"type": "text", "text": text}]} for role, text in spoken
        ]
        messages[0]["content"][:0] = [{"type": "image"}] * len(images)
        text, special_tokens = rendered(self._processor, messages)
        mark = str(self._processor.image_token)
        if text.count(mark) != len(images):
            # Values cannot spell it (prompts/neutral.py); a user's template can.
            return Rejected(
                "image_mark_in_template", f"{mark} stands {text.count(mark)} times for {len(images)} images"
            )
        return Query(
            text=text,
            special_tokens=special_tokens,
            images=images,
            image_keys=tuple(sha256(content) for content in request.images),
            params=sampling_params(self._config, request.task),
            max_tokens=self._config.max_tokens,
            adapter=None,
            expected_ids=None,
        )


def engine_arguments(config: VllmConfig, model: str) -> dict[str, Any]:
    """vLLM's EngineArgs for a teacher or judge in the local folder `model`."""
    arguments = base_arguments(
        model=model,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        images=IMAGES_PER_REQUEST,
        gpus=config.gpus,
        kv_cache_gib=config.kv_cache_gib,
        trust_remote_code=config.trust_remote_code,
    )
    return arguments | {"structured_outputs_config": STRUCTURED}


def sampling_params(config: VllmConfig, task: Task) -> "SamplingParams":
    """How an answer to the task is decoded: within its form, if it has one."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    form = form_of(task)
    structured = None
    if form.choices:
        structured = StructuredOutputsParams(choice=list(form.choices))
    elif form.regex:
        structured = StructuredOutputsParams(regex=form.regex)
    elif form.schema:
        structured = StructuredOutputsParams(json=dict(form.schema))
    return SamplingParams(
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        seed=SEED,
        structured_outputs=structured,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def reply_of(answer: "RequestOutput | Rejected") -> ChatReply:
    """The engine's answer as a reply; its tokens count where it was cut off, too."""
    if isinstance(answer, Rejected):
        return ChatReply(None, answer.reason, answer.detail)
    completion = answer.outputs[0]
    whole = completion.finish_reason == "stop"
    cut = "truncated" if completion.finish_reason == "length" else "interrupted"
    return ChatReply(
        text=completion.text if whole else None,
        reason=None if whole else cut,
        detail="" if whole else f"after {len(completion.token_ids)} tokens: {completion.finish_reason}",
        prompt_tokens=len(answer.prompt_token_ids or ()),
        completion_tokens=len(completion.token_ids),
        cached_tokens=answer.num_cached_tokens or 0,
    )
