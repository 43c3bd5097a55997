"""One training on any number of workers: how its batch is cut, how its model is, and what the trainer is told.

Contract: `batches` keeps the optimiser's batch the same whatever the number of workers, so that more of them change the time
that a training takes and not what comes out. `strategy_arguments` are the TrainingArguments of a strategy, `check_strategy`
finds before anything starts what it lacks, `prepare` finishes a trainer that was built for it, `trained_weights` gathers
what was trained. Knows neither Ray nor our data.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dream_ray.config import ConfigError, TrainConfig
from dream_ray.doctor.shape import seeing

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import Trainer


def batches(train: TrainConfig, workers: int) -> tuple[int, int]:
    """Examples that each of `workers` holds at once and how often it does so in a step.

    With a fixed number of workers a worker holds `micro_batch_size`; with `[least, most]` the largest number up to it that
    divides what falls to a worker. Raises ConfigError where the batch cannot be cut evenly.
    """
    fixed = not isinstance(train.num_workers, tuple)
    sizes = [train.micro_batch_size] if fixed else range(train.micro_batch_size, 0, -1)
    for size in sizes:
        if train.batch_size % (size * workers) == 0:
            return size, train.batch_size // (size * workers)
    at_once = train.micro_batch_size * workers
    if fixed:
        raise ConfigError(
            f"batch_size = {train.batch_size} is not a multiple of micro_batch_size x workers = "
            f"{train.micro_batch_size} x {workers} = {at_once}, so the optimiser's batch cannot be "
            f"split evenly. Set batch_size to a multiple of {at_once}, or lower micro_batch_size or num_workers."
        )
    least, most = train.workers
    raise ConfigError(
        f"batch_size = {train.batch_size} cannot be split evenly over {workers} workers, and num_workers = [{least}, {most}] "
        "allows that many. It has to be a multiple of every number of workers that may come about: widen or narrow the range, "
        "or set another batch_size."
    )


def check_strategy(train: TrainConfig) -> None:
    """Raise ConfigError where the batch cannot be cut for some number of workers, or the strategy lacks something."""
    least, most = train.workers
    for workers in range(least, most + 1):
        batches(train, workers)
    if train.strategy == "zero3" and find_spec("deepspeed") is None:
        raise ConfigError(
            "strategy = 'zero3' needs the package deepspeed, which is not installed here. Install it on every machine that "
            "trains, or take strategy: fsdp2, which cuts the model in the same way and needs nothing else."
        )
    if train.strategy == "zero3" and not train.use_gpu:
        raise ConfigError("strategy = 'zero3' trains on GPUs only. Set use_gpu: true, or take strategy: fsdp2.")


def strategy_arguments(train: TrainConfig) -> dict[str, Any]:
    """What the TrainingArguments say of a strategy."""
    if train.strategy == "fsdp2":
        return {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "reshard_after_forward": True,
                # Each worker writes its part of a checkpoint.
                "state_dict_type": "SHARDED_STATE_DICT",
                "activation_checkpointing": train.checkpointing,
            },
            # Between layers, where FSDP cuts, and not inside them.
            "gradient_checkpointing": False,
        }
    if train.strategy == "zero3":
        return {
            "deepspeed": {
                "zero_optimization": {
                    "stage": 3,
                    "overlap_comm": True,
                    "contiguous_gradients": True,
                    "reduce_bucket_size": "auto",
                    "stage3_prefetch_bucket_size": "auto",
                    "stage3_param_persistence_threshold": "auto",
                    "stage3_gather_16bit_weights_on_model_save": True,
                },
                "bf16": {"enabled": "auto"},
                "gradient_clipping": "auto",
                "train_batch_size": "auto",
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto",
            }
        }
    return {"ddp_find_unused_parameters": False}


def allow_fsdp_on_cpu() -> None:
    """Have accelerate shard between CPU workers, in this process from now on.

    accelerate 1.15 turns FSDP on for kinds of accelerators alone and would silently train with DDP instead, though PyTorch
    shards over gloo as well. tests/train/test_scaling.py fails where this has no effect.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    initialise = AcceleratorState.__init__
    if hasattr(initialise, "__wrapped__"):
        return

    def as_accelerator(self: Any, *arguments: Any, **settings: Any) -> None:
        if PartialState._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        initialise(self, *arguments, **settings)

    as_accelerator.__wrapped__ = initialise  # type: ignore[attr-defined]
    AcceleratorState.__init__ = as_accelerator


def prepare(trainer: "Trainer", train: TrainConfig) -> None:
    """Tell a trainer that was built with a strategy's arguments which layers are cut. Raises RuntimeError where it would not
    cut the model at all."""
    if train.strategy != "fsdp2":
        return
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        raise RuntimeError("strategy = 'fsdp2', but accelerate made no FSDP of it: install the pinned version.")
    # The names that some models give themselves (_no_split_modules) are of classes that are not there.
    plugin.transformer_cls_names_to_wrap = sorted(layer_classes(trainer.model))


def layer_classes(model: "Module") -> set[str]:
    """The classes of a language model's layers: what its lists of equal modules hold.

    The vision tower's are not cut: a worker whose batch has no image would not ask for its share of them, while the others
    wait for it. The tower is part of what is gathered at each step's beginning.
    """
    from torch.nn import ModuleList

    return {
        type(found[0]).__name__
        for name, found in model.named_modules()
        if not seeing(name)
        and isinstance(found, ModuleList)
        and len({type(layer) for layer in found}) == 1
        and _is_layer(found[0])
    }


def _is_layer(module: "Module") -> bool:
    """True for what holds matrices of its own kind of work: attention and the like, no LoRA matrix and no list of experts."""
    return len(list(module.children())) > 1


def trained_weights(trainer: "Trainer", train: TrainConfig) -> dict[str, "Tensor"] | None:
    """What was trained, whole, on rank 0; None where the model itself holds it. All workers have to call it."""
    if train.strategy == "fsdp2":
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        # Of a model with an adapter the adapter alone: the rest did not change.
        adapter_only = hasattr(trainer.model, "peft_config")
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapter_only)
        weights: dict[str, Any] = get_model_state_dict(trainer.model, options=options)
        return weights
    if train.strategy == "zero3":
        return dict(trainer.accelerator.get_state_dict(trainer.deepspeed))
    return None
