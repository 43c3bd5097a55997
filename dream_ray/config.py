"""The configuration: a frozen pydantic tree, the one place of every default.

Contract: `load_config` reads a YAML file (which may name a `base` file), applies dotted `key=value` overrides and returns
a validated `Config`, or raises `ConfigError` with a paragraph that says which key, which value, why and what to do.
Unknown keys are refused. Nothing here touches a model, Ray or the network.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from dream_ray.cpu import computes_bfloat16
from dream_ray.records import Split


class ConfigError(ValueError):
    """A setting that cannot work. The message says the value, why it is wrong and what to do."""


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, attribute docstrings are the field descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


ENGINE_TIMEOUT_S = 300.0
"""Longest silence of a vLLM engine that has work; after it the engine counts as hung and another one is started. A step
takes well below a second on a GPU and some seconds on a busy CPU; loading is not counted."""

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Addresses that no other machine reaches."""


Role = Literal["teacher", "rollout", "judge", "training"]
"""Who asks a cluster for machines: the teacher's actors, rollout engines, the judge's replicas, training workers."""


def _check_pool(least_and_most: tuple[int, int] | None) -> None:
    if least_and_most is not None and not 1 <= least_and_most[0] <= least_and_most[1]:
        raise ValueError(f"autoscale = {list(least_and_most)} has to be [least, most] with 1 <= least <= most")


def _check_range(least_and_most: tuple[int, int]) -> None:
    least, most = least_and_most
    if not 0 <= least <= most or most < 1:
        raise ValueError(f"autoscale = [{least}, {most}] has to be [least, most] with 0 <= least <= most and most >= 1")


class StudentConfig(Section):
    """The model to align."""

    model: str
    """Folder of the base model: safetensors, tokenizer and processor as transformers saves them."""
    trust_remote_code: bool = False
    """Run Python code that the model folder brings. Only for folders that you have read."""
    max_model_len: int = Field(default=2048, ge=64)
    """Longest prompt + answer in tokens, image tokens included, in sampling and in training."""
    max_pixels: int | None = Field(default=None, ge=1024)
    """Pictures with more pixels (width x height) are scaled down to this before the student sees them, in sampling and in
    training alike; beyond what the model's own processor does, which is all that is done unless this is set."""


class ColumnsConfig(Section):
    """Which column of a table holds what. Those that a table lacks are taken as not known, unless named here."""

    id: str = "id"
    """The row's name; rows without one are named by their number."""
    text: str = "text"
    """What the user asks; the only column that a table needs."""
    image: str = "image"
    """A file name, a list of them, or pictures inside the table (as Hugging Face stores them)."""
    split: str = "split"
    risk: str = "risk"
    risk_origin: str = "risk_origin"
    category: str = "category"
    group: str = "group"
    subset: str = "subset"
    twin: str = "twin"
    answer: str = "answer"
    options: str = "options"
    correct_option: str = "correct_option"
    safety_warning: str = "safety_warning"


class SourceConfig(Section):
    """A set of prompts."""

    format: Literal[
        "jsonl", "table", "huggingface", "llava", "dream", "vlguard", "spa_vl", "beavertails_v", "siuo", "figstep",
        "figstep_benign", "mm_safetybench", "mssbench", "mossbench", "xstest", "jailbreakv", "safemt", "mmstar",
    ] = "jsonl"  # fmt: skip
    """How it is laid out; `dream-ray sources` lists what each expects."""
    path: str
    """The file, or the folder in the layout that its publisher gave it; for huggingface a data set's name or snapshot."""
    name: str = ""
    """What the prompts' `source` column says; the file's stem unless set."""
    split: Split | None = None
    """What all its prompts may be used for; what the rows or the format say unless set."""
    subsets: tuple[str, ...] = ()
    """Only these of the parts that the publisher made (as SD_TYPO of mm_safetybench); all unless set."""
    image_folder: str = ""
    """The folder that image names are relative to, where they do not lie where the format expects them."""
    missing_images: Literal["error", "placeholder"] = "error"
    """What an image that is not there does: its row fails, or a grey picture marked as placeholder stands in."""
    observations: Literal["ignore", "use"] = "ignore"
    """`use`: rows that bring observations (formats jsonl and dream) keep them and are not disentangled by the teacher."""
    partial: bool = False
    """The folder holds part of a published set: a count that is not the published one is a warning, not an error."""
    columns: ColumnsConfig = ColumnsConfig()
    """For table and huggingface."""
    risky_values: tuple[str, ...] = ()
    """For table and huggingface: what the risk column says of risky rows, all others being benign; unless set, the column
    says `risky` or `benign`."""
    hub_config: str = ""
    """For huggingface: the data set's configuration, where it has several."""
    hub_split: str = "train"
    """For huggingface: which of the data set's splits is read."""


class ImageConfig(Section):
    """Limits on images: they come from outside and are hostile until proven otherwise."""

    max_bytes: int = Field(default=20_000_000, gt=0)
    """Largest encoded image."""
    max_pixels: int = Field(default=40_000_000, gt=0)
    """Largest decoded image, width x height."""


class RulesConfig(Section):
    """No model: OCR and a risk lexicon, offline. It is a floor to debug and measure against, not a judge to trust."""

    backend: Literal["rules"] = "rules"

    def identity(self) -> dict[str, Any]:
        """The settings that its answers depend on."""
        return {"backend": self.backend}


class PriceConfig(Section):
    """What a model's tokens cost, in USD per million. All 0 where nobody is paid by the token."""

    prompt: float = Field(default=0.0, ge=0)
    completion: float = Field(default=0.0, ge=0)
    cached_prompt: float | None = Field(default=None, ge=0)
    """Prompt tokens that the endpoint reads from its own prompt cache; priced as `prompt` unless set."""


class ModelChatConfig(Section):
    """What the backends that are models share."""

    model: str = Field(min_length=1)
    """The model's name at the endpoint, or the folder of its weights for an own engine."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longest reply. One that is cut off here is a failure, never a short answer."""
    temperature: float = Field(default=0.0, ge=0)
    max_pixels: int = Field(default=1_048_576, ge=1024)
    """Images with more pixels (width x height) are scaled down to this before they are sent."""

    def identity(self) -> dict[str, Any]:
        """The settings that the model's answers depend on; where it is served and what it costs are not among them."""
        return {
            name: value
            for name, value in self.model_dump(mode="json").items()
            if name in ("backend", "model", "max_tokens", "temperature", "max_pixels", "structured")
        }


class OpenAIConfig(ModelChatConfig):
    """Any endpoint that speaks the OpenAI chat protocol."""

    backend: Literal["openai"]
    base_url: str = "https://api.openai.com/v1"
    """The endpoint's address, up to and with its version."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key, on the machine that starts the run; empty: no key is sent."""
    structured: bool = True
    """Ask for the answer's form by `response_format`. Switched off by itself where the endpoint refuses it."""
    timeout_s: float = Field(default=180, gt=0)
    """Deadline of one question with all its retries."""
    max_concurrency: int = Field(default=64, ge=1)
    """Most requests in flight per actor; how many there are follows what the endpoint bears."""
    max_retry_ratio: float = Field(default=0.5, ge=0)
    """Retries a stage may spend per question asked; an endpoint that needs more is down, and the rows fail at once."""
    silent_deadlines: int = Field(default=3, ge=1)
    """So many deadlines, one after the other and without a single answer, end a stage; the same command resumes it."""
    price: PriceConfig = PriceConfig()


class VllmConfig(ModelChatConfig):
    """A vLLM engine inside each teacher actor or scorer replica."""

    backend: Literal["vllm"]
    gpus: int = Field(default=1, ge=0)
    """GPUs of one engine, as tensor parallel ranks; 0 runs vLLM's CPU build."""
    max_model_len: int = Field(default=8192, ge=64)
    """Longest prompt + reply in tokens, image tokens included."""
    dtype: str = "bfloat16"
    kv_cache_gib: int = Field(default=1, ge=1)
    """KV cache of an engine on CPU; a GPU engine takes its memory by vLLM's own rule."""
    trust_remote_code: bool = False
    """Run Python code that the model folder brings. Only for folders that you have read."""
    engine_timeout_s: float = Field(default=ENGINE_TIMEOUT_S, gt=0)
    """Longest silence of an engine that has work, before another one is started in its place."""


ChatConfig = Annotated[RulesConfig | OpenAIConfig | VllmConfig, Field(discriminator="backend")]
"""Which chat model serves as teacher or judge; `backend` chooses."""


class TeacherConfig(Section):
    """Disentangling and demonstrating."""

    chat: ChatConfig = RulesConfig()
    actors: int = Field(default=1, ge=1)
    """Ray actors that hold a teacher."""
    autoscale: tuple[int, int] | None = None
    """Least and most actors; how many there are follows the work and the machines. Unset: `actors`, always."""
    max_words: int = Field(default=100, ge=10)
    """Length asked of a demonstration; the answers released with DREAM show that their teacher was told 100."""
    benign_ratio: float = Field(default=1.0, ge=0)
    """Least benign demonstrations per risky one; risky ones beyond it are left out, or the student learns to refuse."""

    @property
    def pool(self) -> tuple[int, int]:
        """Least and most actors."""
        return self.autoscale or (self.actors, self.actors)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_pool(self.autoscale)
        return self


class LoraConfig(Section):
    """The adapter that SFT creates and DPO goes on training."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str = r".*(text_model|language_model).*\.(q|k|v|o|gate|up|down)_proj"
    """Regex over module names: the language model's projections. vLLM ignores adapters on vision towers."""


class TrainConfig(Section):
    """What SFT and DPO share."""

    learning_rate: float = Field(gt=0)
    epochs: float = Field(gt=0)
    batch_size: int = Field(default=8, ge=1)
    """Examples per optimiser step over all workers and accumulation steps."""
    micro_batch_size: int = Field(default=4, ge=1)
    """Examples a worker holds at once; `batch_size` must be a multiple of this times the workers."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    max_grad_norm: float = Field(default=1.0, gt=0)
    num_workers: int | tuple[int, int] = 1
    """Ray Train workers, over all nodes; 0 trains inside the driver. `[least, most]` takes what the cluster has and goes on
    with more or fewer, from the last checkpoint and with the same `batch_size`."""
    strategy: Literal["ddp", "fsdp2", "zero3"] = "ddp"
    """How several workers share the work. ddp: each holds the whole model. fsdp2 (PyTorch) and zero3 (DeepSpeed, which has
    to be installed): weights, gradients and optimiser are cut over all workers, for models that one GPU cannot hold."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints; at the end of each epoch unless set. A training that is interrupted goes on from the
    last one, with the batch that comes next."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """How many checkpoints stay on the storage, the newest ones."""
    use_gpu: bool = False
    bf16: bool = False
    """bfloat16 weights and activations; float32 otherwise. `auto`: on GPUs, and on CPUs if that of the machine that reads this
    computes in bfloat16 itself, for emulating it takes several times as long as float32."""
    gradient_checkpointing: bool | None = None
    """Keep a layer's input alone and compute the rest again in the backward pass: a third more time for much less memory.
    Unset: on GPUs, whose memory is short."""
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where the training's log goes besides training.jsonl in the stage's folder. wandb and mlflow have to be installed, and
    take their address and key from their own environment variables."""

    @field_validator("bf16", mode="before")
    @classmethod
    def _resolve_bf16(cls, value: object, info: ValidationInfo) -> object:
        return info.data.get("use_gpu") or computes_bfloat16() if value == "auto" else value

    @property
    def checkpointing(self) -> bool:
        """Whether gradients are checkpointed."""
        return self.use_gpu if self.gradient_checkpointing is None else self.gradient_checkpointing

    @property
    def workers(self) -> tuple[int, int]:
        """Least and most processes that train."""
        least, most = self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)
        return max(1, least), max(1, most)

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        if isinstance(self.num_workers, tuple):
            least, most = self.num_workers
            if not 1 <= least <= most:
                raise ValueError(f"num_workers = [{least}, {most}] has to be [least, most] with 1 <= least <= most")
        elif self.num_workers < 0:
            raise ValueError(f"num_workers = {self.num_workers} is below 0; 0 trains inside the driver")
        if self.strategy != "ddp" and self.workers[0] < 2:
            raise ValueError(
                f"strategy = {self.strategy!r} cuts a model over workers, and num_workers = {self.num_workers} allows a single "
                "one; set 2 or more"
            )
        return self


class SftConfig(TrainConfig):
    """Risk-aware fine-tuning."""

    learning_rate: float = Field(default=2e-4, gt=0)
    epochs: float = Field(default=3, gt=0)


class CollapseConfig(Section):
    """Bounds of a DPO round's own numbers, each a mean over the steps between two lines of its log. One that is left ends the
    round with the weights of the last line within them. Unset ones are not watched: what is too far depends on model, beta
    and answers, so look at the log of a round that went well first."""

    max_margin: float | None = Field(default=None, gt=0)
    """Most that chosen answers may be rewarded above rejected ones (rewards/margins, which has beta in it)."""
    max_kl: float | None = Field(default=None, gt=0)
    """Most nats per answer that the policy may have moved from the reference on the pairs' answers (`kl`)."""
    max_length_ratio: float | None = Field(default=None, gt=1)
    """Most that the mean length of the policy's answers to benign prompts may change, as a factor either way."""
    max_benign_refusal: float | None = Field(default=None, ge=0, lt=1)
    """Largest share of benign prompts that the policy may refuse, by the keywords of stock refusals."""
    probes: int = Field(default=16, ge=1)
    """How many benign prompts of the development split are answered for the last two."""
    probe_tokens: int = Field(default=64, ge=1)
    """Longest answer to one of them."""

    @property
    def asks(self) -> bool:
        """Whether a bound needs answers to be generated."""
        return self.max_length_ratio is not None or self.max_benign_refusal is not None

    @property
    def watches(self) -> bool:
        """Whether any bound is set."""
        return self.asks or self.max_margin is not None or self.max_kl is not None


class DpoConfig(TrainConfig):
    """Preference optimisation of one round."""

    learning_rate: float = Field(default=1e-5, gt=0)
    epochs: float = Field(default=1, gt=0)
    loss: Literal["sigmoid", "sigmoid_norm", "ipo", "hinge", "robust"] = "sigmoid"
    """By TRL's names. sigmoid: Rafailov et al. 2023. sigmoid_norm: the same on log-probabilities per token, so that length
    does not count. ipo: Azar et al. 2023, per token too. hinge: Zhao et al. 2023 (SLiC). robust: Chowdhury et al. 2024,
    which reckons with a share `label_smoothing` of pairs that are the wrong way round."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference; of ipo the paper's tau. Losses per token see margins that are smaller
    by the answers' length, so they want a larger one (SimPO, per token too, takes 2 to 2.5)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs expected to be the wrong way round, for the loss `robust`; TRL's other losses here have none."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of an SFT term on the chosen answers beside the DPO loss."""
    reference: Literal["initial", "previous"] = "initial"
    """`initial`: policy 0 stays the reference. `previous`: each round's start is."""
    stop: CollapseConfig = CollapseConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.loss == "robust") != (self.label_smoothing > 0):
            raise ValueError(
                f"dpo.loss = {self.loss} with dpo.label_smoothing = {self.label_smoothing:g}: the loss robust needs a share "
                "above 0, and TRL's other losses have no label smoothing, so it would be ignored. Set both or neither"
            )
        if self.stop.watches and self.strategy == "zero3":
            raise ValueError(
                "dpo.stop keeps the last good weights, which DeepSpeed's zero3 does not give out while it trains; take "
                "dpo.strategy=fsdp2, or unset the bounds of dpo.stop"
            )
        return self


class RolloutConfig(Section):
    """Sampling from the student with vLLM."""

    k: int = Field(default=8, ge=1)
    """Answers sampled per training prompt and round, in one request."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the training prompts that one round samples; the next round samples others."""
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=256, ge=1)
    """Longest answer, in rollouts and in evaluation."""
    engines: int = Field(default=1, ge=1)
    """vLLM engines, each in its own Ray Data actor."""
    autoscale: tuple[int, int] | None = None
    """Least and most engines; how many there are follows the work and the machines. Unset: `engines`, always."""
    gpus_per_engine: int = Field(default=0, ge=0)
    """GPUs of one engine (tensor parallel); 0 runs vLLM's CPU build."""
    adapters: Literal["auto", "request", "merge"] = "auto"
    """How an adapter gets to the engine. `request`: with each request, one engine for all policies of a base model.
    `merge`: merged into the weights, one engine after the other. `auto`: `request` on GPUs, `merge` on a CPU, where vLLM
    computes adapters token by token."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the engine's weights and of an adapter merged into them. `auto`: bfloat16 where training's `bf16: auto` is, else
    float32. A student whose choices hang on small differences of logits answers otherwise in another precision than it was
    trained in: of 234 answers of a demo trained in float32, 18 opened with a refusal in bfloat16 alone."""
    kv_cache_gib: int = Field(default=1, ge=1)
    """KV cache of an engine on CPU; a GPU engine takes its memory by vLLM's own rule."""
    engine_timeout_s: float = Field(default=ENGINE_TIMEOUT_S, gt=0)
    """Longest silence of an engine that has work, before another one is started in its place."""

    @field_validator("dtype", mode="before")
    @classmethod
    def _resolve_dtype(cls, value: object, info: ValidationInfo) -> object:
        if value != "auto":
            return value
        return "bfloat16" if info.data.get("gpus_per_engine") or computes_bfloat16() else "float32"

    @property
    def pool(self) -> tuple[int, int]:
        """Least and most engines."""
        return self.autoscale or (self.engines, self.engines)

    @property
    def merges_adapters(self) -> bool:
        """True where an engine gets a policy's merged weights."""
        return self.adapters == "merge" or (self.adapters == "auto" and self.gpus_per_engine == 0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_pool(self.autoscale)
        return self


class ServedModelConfig(Section):
    """An engine that `dream-ray serve` starts beside the scorer (ray.serve.llm), for `judge.chat` to ask."""

    path: str = Field(min_length=1)
    """Folder of the model's weights; it is served under the name `judge.chat.model`."""
    gpus: int = Field(default=1, ge=0)
    """GPUs of one engine, as tensor parallel ranks; 0 runs vLLM's CPU build."""
    autoscale: tuple[int, int] = (1, 1)
    """Least and most engines; how many there are follows the load. A least of 0 lets go of the last one when idle."""
    max_images: int = Field(default=1, ge=1)
    """Images in one question."""
    max_model_len: int = Field(default=8192, ge=64)
    """Longest prompt + reply in tokens, image tokens included."""
    dtype: str = "bfloat16"
    kv_cache_gib: int = Field(default=1, ge=1)
    """KV cache of an engine on CPU; a GPU engine takes its memory by vLLM's own rule."""
    trust_remote_code: bool = False
    """Run Python code that the model folder brings. Only for folders that you have read."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self.autoscale)
        return self


class JudgeConfig(Section):
    """AI feedback: the scorer on Ray Serve."""

    chat: ChatConfig = RulesConfig()
    replicas: int = Field(default=1, ge=1)
    autoscale: tuple[int, int] | None = None
    """Least and most replicas; how many there are follows the load. A least of 0 lets go of the last one when idle.
    Unset: `replicas`, always."""
    timeout_s: float = Field(default=600, gt=0)
    """Deadline of one scoring request. At least `chat.timeout_s`: a request that is given up while its judge's endpoint is
    still at work is sent again, and may be paid again."""
    attempts: int = Field(default=6, ge=1)
    """Tries of a scoring request before its rows go to the errors table. The pauses between six last about 15 s: long
    enough for Serve to see that a replica or its proxy has died and to start another."""
    host: str = "127.0.0.1"
    """The address that the scorer listens on. Another one than loopback needs `token_env`."""
    port: int = Field(default=0, ge=0, le=65535)
    """The port that the scorer listens on; 0 takes any that is free."""
    token_env: str = ""
    """The environment variable that holds the bearer token that callers have to send; empty: none. It has to be set
    where the scorer's replicas run and where callers run."""
    image_uris: bool | None = None
    """Open the images that requests name by uri, on whatever storage the replicas read. Unset: on loopback only. Where
    this is off, images come inside the request."""
    max_body_bytes: int = Field(default=64_000_000, ge=1024)
    """Largest request body."""
    serve_model: ServedModelConfig | None = None
    """A judge model for `dream-ray serve` to start; `chat` is then of the backend `openai`."""

    @property
    def most_replicas(self) -> int:
        """How many replicas there may be at once."""
        return self.replicas if self.autoscale is None else self.autoscale[1]

    @property
    def on_loopback(self) -> bool:
        """True where only this machine reaches the scorer."""
        return self.host in LOOPBACK

    @property
    def opens_uris(self) -> bool:
        """Whether images named by uri are opened."""
        return self.on_loopback if self.image_uris is None else self.image_uris

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.autoscale is not None:
            _check_range(self.autoscale)
        if isinstance(self.chat, OpenAIConfig) and self.timeout_s < self.chat.timeout_s:
            raise ValueError(
                f"judge.timeout_s = {self.timeout_s:g} gives a scoring request less time than its judge has for one question "
                f"(judge.chat.timeout_s = {self.chat.timeout_s:g}), so slow answers would be asked and paid for again; raise "
                "the first, best to several times the second, or lower the second"
            )
        if not self.on_loopback and not self.token_env:
            raise ValueError(
                f"the host {self.host!r} is reached from other machines, and without a token anybody there could spend "
                "the judge's money; name the environment variable that holds one in judge.token_env, or take 127.0.0.1"
            )
        if self.serve_model is not None and self.chat.backend != "openai":
            raise ValueError(
                f"judge.serve_model starts a model that the backend {self.chat.backend!r} would never ask; set "
                "judge.chat to {backend: openai, model: NAME, api_key_env: ''}"
            )
        if self.serve_model is not None and not self.on_loopback:
            raise ValueError(
                f"judge.serve_model is served without a token, which the host {self.host!r} would open to other "
                "machines; take 127.0.0.1, or serve the model elsewhere and set judge.chat.base_url"
            )
        return self


class PairConfig(Section):
    """From judged rollouts to preference pairs."""

    margin: float = Field(default=0.2, ge=0)
    """Least difference of rewards between chosen and rejected, as a share of the reward's range."""
    per_prompt: int = Field(default=2, ge=1)
    """Most pairs of one prompt."""
    max_shift_ratio: float = Field(default=1.0, ge=1)
    """Most pairs that prefer help to a refusal per pair that prefers a refusal to help, and the other way round; those with the
    least difference of rewards are left out. What is in excess moves all answers its way, of risky and benign prompts alike."""
    max_length_ratio: float = Field(default=1.25, ge=1)
    """Mean chosen length / mean rejected length over the set stays within this and its inverse; pairs that tip it are
    left out."""


class BenchmarkConfig(Section):
    """A benchmark and where its data lies."""

    name: Literal[
        "figstep", "figstep_benign", "vlguard", "xstest", "mossbench", "siuo", "siuo_mcqa", "mm_safetybench", "mssbench",
        "mmstar",
    ]  # fmt: skip
    """Which one; docs/evaluate.md says what each measures."""
    source: SourceConfig
    """Its data. Only held-out prompts are used."""


class EvaluateConfig(Section):
    """Measuring a policy."""

    splits: tuple[Split, ...] = (Split.DEV, Split.HELD_OUT)
    """DEV decides whether a round is taken; HELD_OUT is only reported."""
    max_over_refusal: float | None = Field(default=None, ge=0, le=1)
    """A round whose policy refuses a larger share of the benign DEV prompts is not taken, however safe it is, unless the
    standing policy refuses as many; where that one is above it, refusing fewer may cost a part of the gap that cannot be told
    from chance. Unset, safe answers and over-refusal weigh the same."""
    benchmarks: tuple[BenchmarkConfig, ...] = ()
    """Measured for the base model, policy 0 and the final policy."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest answer to a benchmark's prompt, where that is less than the benchmark's own."""

    def answer_tokens(self, own: int) -> int:
        """The longest answer to a benchmark whose own limit is `own`."""
        return own if self.max_tokens is None else min(own, self.max_tokens)


class BudgetConfig(Section):
    """Money."""

    max_cost_usd: float | None = Field(default=None, gt=0)
    """Most that the run may pay for teacher and judge, over all its attempts. Reached, the stage stops, resumable."""


class ClusterConfig(Section):
    """The machines: those that Ray has or can get, and what to start where this process has to start Ray."""

    local_num_cpus: int = Field(default=8, ge=4)
    """Logical CPUs of a Ray started here; more than the cores, or Serve, Data and Train wait for one another."""
    gpu_gib: float | None = Field(default=None, gt=0)
    """Memory of one GPU in GiB, as nvidia-smi shows it, for `dream-ray doctor`; a card sold as 80 GB has 79."""
    gpus: int | None = Field(default=None, ge=0)
    """Most GPUs that the cluster can grow to. Unset: as many as there are now, so that on a cluster whose GPUs come only
    when they are asked for, stages that need some take turns."""
    wait_for_nodes_s: float = Field(default=1800, gt=0)
    """Longest wait for machines before a stage gives up."""
    resources: dict[Role, dict[str, Annotated[float, Field(gt=0)]]] = Field(default_factory=dict)
    """What each actor of a role asks for beside CPUs and GPUs, such as {rollout: {"accelerator_type:L40S": 0.001}} on a
    cluster with several kinds of GPUs."""


class Config(Section):
    """One run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run; a run directory belongs to one name."""
    run_dir: str = ""
    """Where results live, on any pyarrow filesystem; runs/<name> unless set."""
    seed: int = 0
    rounds: int = Field(default=3, ge=0)
    """Rounds of rollout, judge, pair, dpo, evaluate after SFT."""
    part_rows: int = Field(default=32, ge=1)
    """Prompts of one part: the unit that an actor takes at once and that is written as one file."""
    max_failure_rate: float = Field(default=0.05, ge=0, le=1)
    """A stage that fails on more than this share of its rows stops the run."""
    templates: str | None = None
    """A folder of prompt templates that replace the shipped ones of the same name."""
    cache: str | None = None
    """Where replies of teacher and judge are kept, so that none is paid twice; <run_dir>/cache unless set. Several runs
    may share one."""
    budget: BudgetConfig = BudgetConfig()
    student: StudentConfig
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    images: ImageConfig = ImageConfig()
    teacher: TeacherConfig = TeacherConfig()
    sft: SftConfig = SftConfig()
    lora: LoraConfig | None = LoraConfig()
    """The adapter that is trained. null: none; all weights are, but those of the vision tower, and every policy is a whole
    model."""
    rollout: RolloutConfig = RolloutConfig()
    judge: JudgeConfig = JudgeConfig()
    pairs: PairConfig = PairConfig()
    dpo: DpoConfig = DpoConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()


def secret(variable: str, setting: str) -> str | None:
    """The value of the environment variable that a setting names, None where it names none.

    Call it where the value is used, so that it is never pickled into another process. Raises ConfigError where the
    variable is not set.
    """
    if not variable:
        return None
    value = os.environ.get(variable, "")
    if not value:
        raise ConfigError(
            f"{setting} names the environment variable {variable!r}, which is not set in this process. Export it before "
            "Ray starts, on every machine where it is used, or set the setting to '' to do without."
        )
    return value


def _read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping with its `base` file, if it names one, underneath."""
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"The config file {path} does not exist. Name an existing file; configs/ has examples."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"The config file {path} is not YAML: {error}. Mend that line.") from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"The config file {path} holds no mapping of keys to values. See configs/local.yaml for the form."
        )
    base = tree.pop("base", None)
    return _merge(_read_yaml(path.parent / base), tree) if base else tree


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _override(tree: dict[str, Any], assignment: str) -> dict[str, Any]:
    """The tree with one dotted `key=value` applied; the value is read as YAML."""
    key, separator, text = assignment.partition("=")
    if not separator or not key:
        raise ConfigError(f"The override {assignment!r} is not of the form key=value. Write for example rollout.k=4.")
    value: Any = yaml.safe_load(text)
    for part in reversed(key.split(".")):
        value = {part: value}
    return _merge(tree, value)


def load_config(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """Read, override and validate. Raises ConfigError naming each wrong key, its value and the remedy."""
    tree = _read_yaml(Path(path))
    for assignment in overrides:
        tree = _override(tree, assignment)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(path, error)) from None


def load_source(form: str, path: str, settings: list[str]) -> SourceConfig:
    """A source from the command line; `settings` are its other keys as key=value. Raises ConfigError."""
    tree: dict[str, Any] = {"format": form, "path": path}
    for assignment in settings:
        tree = _override(tree, assignment)
    try:
        return SourceConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain("source", error, SourceConfig)) from None


def _explain(path: str | Path, error: ValidationError, root: type[Section] | None = None) -> str:
    problems = []
    for item in error.errors():
        parts, fields_there = _walk(item["loc"], root or Config)
        key = ".".join(parts)
        if item["type"] == "extra_forbidden":
            known = ", ".join(fields_there)
            problems.append(f"{key} = {item['input']!r} is not a key of dream_ray; keys there: {known}")
        elif item["type"] == "missing":
            problems.append(f"{key} is required but not set")
        else:
            problems.append(f"{key} = {item['input']!r}: {item['msg']}")
    return (
        f"The config {path} cannot be used: {'; '.join(problems)}. Mend the file or the key=value on the command line."
    )


def _walk(location: tuple[int | str, ...], root: type[Section]) -> tuple[list[str], list[str]]:
    """An error's location as the user writes it, and the names that are allowed where it ends."""
    section: Any = root
    parts: list[str] = []
    choices: dict[str, Any] = {}
    for part in location:
        if part in choices:  # pydantic names the chosen backend, which is no key
            section, choices = choices[str(part)], {}
            continue
        parts.append(str(part))
        if part == location[-1] or isinstance(part, int):
            continue
        field = section.model_fields[part]
        types = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        sections = [kind for kind in types if issubclass(kind, Section)]
        if field.discriminator:
            choices = {get_args(kind.model_fields[field.discriminator].annotation)[0]: kind for kind in sections}
        else:
            section = sections[0]
    return parts, list(section.model_fields)
