"""A training that cannot give a policy: the error that says so, and its words for what trying again would not mend.

Contract: pure but for the question what kind of error PyTorch raised.
"""

from dream_ray.config import TrainConfig

KEPT = "What was trained before this stage is kept, and the checkpoints of this one are too."
NOT_FINITE = (
    "Training was given up: {reason}, so the weights are of no use. Lower the learning rate or max_grad_norm, raise "
    "warmup_ratio, or train in float32 (bf16: false)."
)


class TrainingBroken(Exception):
    """A training that cannot give a policy, or may not: the message says why and what to do. Trying again would not help."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """True for both forms that PyTorch gives it: a class of its own on GPUs, words on a CPU."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def no_memory(train: TrainConfig, error: RuntimeError) -> str:
    """What to do where a step does not fit, the cheapest remedy first."""
    remedies = [] if train.micro_batch_size == 1 else [f"lower micro_batch_size (now {train.micro_batch_size})"]
    remedies += [] if train.checkpointing else ["set gradient_checkpointing: true"]
    remedies += [] if train.bf16 else ["set bf16: true"]
    remedies += ["lower student.max_pixels", "take more or larger GPUs"]
    return (
        f"Training ran out of memory: {str(error).splitlines()[0]} Remedies, the cheapest first: {'; '.join(remedies)}. "
        "batch_size may stay as it is: what a worker does not hold at once is accumulated. `dream-ray doctor` estimates the "
        "memory before anything loads."
    )
