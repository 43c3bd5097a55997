"""How much memory training and engines take, part by part: formulas, no measurement.

Contract: pure functions from a model's shape and some settings to bytes on one GPU (or, without one, of one process). They
count what grows with the model and the batch and add a constant for the rest; they mean to be a little high. What they rest
on stands with each.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dream_ray.doctor.shape import LAYER, ModelShape, adapter_parameters, targets

GIB = 2**30
FLOAT = 4
"""Bytes of a float32."""

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "half": 2, "float32": 4, "float": 4}
"""Bytes of an element by vLLM's names of dtypes; `auto` is not among them, and counts as the usual bfloat16."""

RUNTIME_GIB = 1.5
"""CUDA's context, NCCL's buffers and the libraries' workspaces; about what a process shows before it holds a tensor."""

GRAPHS_GIB = 1.0
"""vLLM's CUDA graphs."""

RESERVE = 0.1
"""Share of the memory that training has to leave free: PyTorch's allocator keeps blocks that later tensors do not fit in."""

UTILISATION = 0.92
"""Share of a GPU that vLLM 0.32 takes (gpu_memory_utilization)."""

BATCHED_TOKENS, SEQUENCES = 2048, 128
"""Tokens and sequences of one step of an engine that is started in an actor: vLLM 0.32's SchedulerConfig.DEFAULT_MAX_NUM_*."""

TILE_TOKENS, TILE_VOCABULARY, TILE_COPIES = 4096, 32768, 3
"""TRL 1.16 scores the vocabulary in tiles of this size (trl/kernels/chunked_logprob.py); a tile is there as the product, as
its float32 copy and as its gradient."""

ALL_PROJECTIONS = r"(?!.*(vision_tower|vision_model|visual)\.).*\.(q|k|v|o|gate|up|down)_proj"
"""The matrices of the language model that vLLM keeps room for adapters beside; the vision tower's are left out."""

Parts = Mapping[str, float]
"""Bytes by what they are for."""


@dataclass(frozen=True)
class Training:
    """The settings that a training step's memory depends on.

    `sequences` are those of a micro batch: its examples in SFT, twice as many in DPO (chosen and rejected). `tokens` is the
    longest sequence, padding included. `reference` says that a second, frozen adapter is held (DPO against policy 0).
    `shards` is over how many workers the model is cut (FSDP2, ZeRO-3), 1 where each holds it whole.
    """

    sequences: int
    tokens: int
    bf16: bool
    checkpointing: bool
    workers: int
    rank: int
    target_modules: str
    reference: bool
    on_gpu: bool
    shards: int = 1


def lora_training(shape: ModelShape, train: Training) -> Parts:
    """One worker's memory where an adapter is trained on frozen weights.

    Weights in bfloat16 or float32. PEFT keeps the adapter in float32 (autocast_adapter_dtype), and so are its gradients and
    AdamW's two moments: 4 + 4 + 8 bytes a trained parameter.
    """
    adapter = adapter_parameters(shape, train.rank, train.target_modules)
    held = {
        "weights": shape.parameters * _bytes(train.bf16),
        "adapter": FLOAT * adapter * (2 if train.reference else 1),
        "gradients": FLOAT * adapter * _buckets(train),
        "optimiser": 2 * FLOAT * adapter,
    }
    return _cut(held, train) | gathered(shape, train, _bytes(train.bf16)) | _of_a_step(shape, train)


def full_training(shape: ModelShape, train: Training) -> Parts:
    """One worker's memory where all but the vision tower is trained.

    Mixed precision with AdamW takes 16 bytes a trained parameter before activations (Rajbhandari et al. 2020, ZeRO,
    section 3.1): float32 weights, gradients and two moments. A reference policy would be a second copy of the weights.
    """
    trained = shape.parameters - shape.vision_parameters
    second = shape.parameters * _bytes(train.bf16) if train.reference else 0
    held = {
        "weights": FLOAT * trained + shape.vision_parameters * _bytes(train.bf16) + second,
        "gradients": FLOAT * trained * _buckets(train),
        "optimiser": 2 * FLOAT * trained,
    }
    # A layer's gradient is whole, in float32, until it is shared out.
    return _cut(held, train) | gathered(shape, train, _bytes(train.bf16) + FLOAT) | _of_a_step(shape, train)


def gathered(shape: ModelShape, train: Training, element_bytes: int) -> dict[str, float]:
    """What a worker of a model that is cut holds whole for a moment: a layer at work and the next one on its way (Zhao et al.
    2023, PyTorch FSDP, section 3.3), the embedding, and the vocabulary's matrix, which TRL's fused head gathers."""
    if train.shards == 1:
        return {}
    ends = 2 * shape.vocabulary * shape.hidden
    layer = max(0, shape.parameters - shape.vision_parameters - ends) / max(1, shape.layers)
    return {"gathered": (2 * layer + ends) * element_bytes}


def _buckets(train: Training) -> int:
    """How often DDP holds gradients: once more in its buckets (gradient_as_bucket_view is off)."""
    return 2 if train.workers > 1 and train.shards == 1 else 1


def _cut(held: Mapping[str, float], train: Training) -> dict[str, float]:
    return {name: float(size) / train.shards for name, size in held.items()}


def _of_a_step(shape: ModelShape, train: Training) -> dict[str, float]:
    """What a training step holds whatever is trained."""
    return {
        "activations": activations(shape, train),
        "vocabulary": vocabulary_tiles(shape, train),
        "images": image_bytes(shape, train.sequences * train.tokens, _bytes(train.bf16)),
        "runtime": RUNTIME_GIB * GIB,
    }


def activations(shape: ModelShape, train: Training) -> float:
    """What the backward pass needs of the forward pass, in bytes, attention computed without its matrix (SDPA).

    After Korthikanti et al. 2022 (Reducing Activation Recomputation, section 4.1), counted for a gated MLP and grouped
    heads. Elements of a token in a layer: two RMSNorms of 5 x hidden each (float32 copies before and after the division,
    and the result), the attention's queries, keys, values and output, and four of the MLP's width (gate, its SiLU, up,
    their product); each LoRA matrix keeps a cast copy of its input in bfloat16. With checkpointing a layer keeps its
    input alone, and one layer at a time is whole. Without it, layers below the first trained one keep nothing.
    """
    tokens = train.sequences * train.tokens
    chosen = targets(shape, train.target_modules)
    casts = sum(into for _, into in chosen.values()) / max(1, shape.layers) if train.bf16 else 0
    elements = 10 * shape.hidden + 2 * shape.query + 2 * shape.key_value + 4 * shape.intermediate + casts
    layer = tokens * elements * _bytes(train.bf16)
    if train.checkpointing:
        return shape.layers * tokens * shape.hidden * _bytes(train.bf16) + layer
    numbers = [int(found[1]) for name in chosen if (found := LAYER.search(f"{name}."))]
    return (shape.layers - min(numbers, default=0)) * layer


def vocabulary_tiles(shape: ModelShape, train: Training) -> float:
    """The tiles in which TRL scores the vocabulary."""
    tokens = min(train.sequences * train.tokens, TILE_TOKENS)
    return float(TILE_COPIES * tokens * min(shape.vocabulary, TILE_VOCABULARY) * FLOAT)


def image_bytes(shape: ModelShape, tokens: int, element_bytes: int) -> float:
    """One layer of a frozen vision tower at work, where all `tokens` are image tokens: no more can be images."""
    return float(
        tokens * shape.patches_per_token * (8 * shape.vision_hidden + 3 * shape.vision_intermediate) * element_bytes
    )


@dataclass(frozen=True)
class EngineUse:
    """The settings that a vLLM engine's memory depends on. `gpus` are tensor parallel ranks, 0 the CPU build;
    `adapters` at once of at most `rank`, 0 where adapters are merged."""

    gpus: int
    dtype: str
    max_model_len: int
    adapters: int = 0
    rank: int = 0


def engine(shape: ModelShape, use: EngineUse) -> Parts:
    """One GPU's memory of an engine before its KV cache."""
    ranks = max(1, use.gpus)
    size = DTYPE_BYTES.get(use.dtype, 2)
    weights = shape.stored_bytes if shape.quantised else shape.parameters * size
    room = use.adapters * adapter_parameters(shape, use.rank, ALL_PROJECTIONS) * size if use.adapters else 0
    step = BATCHED_TOKENS * (4 * shape.hidden + 3 * shape.intermediate / ranks) * size
    return {
        "weights": weights / ranks,
        "adapters": room / ranks,
        "step": step + SEQUENCES * shape.vocabulary * 2 * FLOAT,
        "images": image_bytes(shape, BATCHED_TOKENS, size),
        "runtime": (RUNTIME_GIB + (GRAPHS_GIB if use.gpus else 0)) * GIB,
    }


def kv_bytes_per_token(shape: ModelShape, use: EngineUse) -> float:
    """KV cache of a token on one GPU: 2 x layers x width of keys. A rank holds at least one head (Kwon et al. 2023,
    PagedAttention, section 3: a 13B OPT takes 800 KB, 2 x 5120 x 40 x 2 bytes)."""
    width = max(shape.key_value / max(1, use.gpus), shape.head_dim)
    return 2 * shape.layers * width * DTYPE_BYTES.get(use.dtype, 2)


def _bytes(bf16: bool) -> int:
    return 2 if bf16 else FLOAT
