"""Score the vocabulary on answer tokens only, on CPU as on GPU.

Contract: within `score_answers_only`, TRL's fused LM head projects only positions that have a label, on every device.
TRL 1.16 does so where Triton runs and scores all positions elsewhere, prompt and padding included, because compilers
other than eager torch would recompile for each batch; eager CPU torch does not. On the 138M student with its 49k-word
vocabulary this takes a third off a training step. The only module that touches a private name of TRL, and
tests/train/test_answer_logits.py fails when TRL changes it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from trl.trainer import utils as trl_utils


@contextmanager
def score_answers_only() -> Iterator[None]:
    """Within it, in this process. The numbers that training computes stay the same."""
    runs_triton = trl_utils._use_triton
    trl_utils._use_triton = lambda device: device.type == "cpu" or runs_triton(device)
    try:
        yield
    finally:
        trl_utils._use_triton = runs_triton
