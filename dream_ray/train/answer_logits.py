"""Score the vocabulary on answer tokens only, and once, where training runs on a CPU.

Contract: within `score_answers_only`, TRL's fused LM head projects only positions that have a label. TRL 1.16 does so where
Triton runs and scores all positions elsewhere, prompt and padding included, because compilers other than eager torch
would recompile for each batch; eager CPU torch does not. And the logits of a batch are kept, while they are few and not scaled.
TRL computes them in tiles, and again for the gradient, there in float32: this spares a GPU's memory, and a CPU waits for it.
The numbers that training computes stay the same. What both are worth on a CPU is what benchmarks/train.py shows. The only
module that touches private names of TRL, and tests/train/test_answer_logits.py fails when TRL changes them.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from trl.trainer import utils as trl_utils

MOST_LOGITS = 2**26
"""As many are kept: 256 MiB in float32, and two more of that size for the gradient. A batch of the demo has 2**23."""


@contextmanager
def score_answers_only() -> Iterator[None]:
    """Within it, in this process."""
    runs_triton, tiles = trl_utils._use_triton, trl_utils._ChunkedLogProbFunction

    class Scores:
        """What stands in the kernel's place, with its arguments and results."""

        @staticmethod
        def apply(
            hidden: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            targets: torch.Tensor,
            temperature: float,
            chunk_size: int,
            softcap: float | None,
            scale: float,
            outputs: Collection[str],
        ) -> tuple[torch.Tensor | None, ...]:
            as_they_are = temperature == scale == 1 and softcap is None
            if hidden.device.type == "cpu" and as_they_are and len(hidden) * len(weight) <= MOST_LOGITS:
                return _scores(torch.nn.functional.linear(hidden, weight, bias).float(), targets, outputs)
            rest = temperature, chunk_size, softcap, scale, outputs
            in_tiles: tuple[torch.Tensor | None, ...] = tiles.apply(hidden, weight, bias, targets, *rest)
            return in_tiles

    trl_utils._use_triton = lambda device: device.type == "cpu" or runs_triton(device)
    trl_utils._ChunkedLogProbFunction = Scores
    try:
        yield
    finally:
        trl_utils._use_triton, trl_utils._ChunkedLogProbFunction = runs_triton, tiles


def _scores(logits: torch.Tensor, targets: torch.Tensor, outputs: Collection[str]) -> tuple[torch.Tensor | None, ...]:
    """Of each position (logits: positions x words): the target's log-probability; and of what `outputs` names, else None,
    without a gradient, as SFT and DPO but log them: entropy, log of the squared probabilities' sum, mean logit, whether the
    target is the likeliest word."""
    found = logits.log_softmax(-1)
    with torch.no_grad():
        logged = {
            "entropy": lambda: -torch.linalg.vecdot(found.exp(), found),
            "log_sum_sq_probs": lambda: (2 * found).logsumexp(-1),
            "mean_logits": lambda: logits.mean(-1),
            "is_top1": lambda: logits.argmax(-1) == targets,
        }
        extra = [value() if name in outputs else None for name, value in logged.items()]
    return found.gather(-1, targets[:, None])[:, 0], *extra
