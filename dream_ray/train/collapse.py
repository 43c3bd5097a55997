"""When a training ends early: its numbers left their bounds, or are no numbers any more.

Contract: `FiniteWatch`, for every training, ends it at the first log entry whose loss or gradient is not finite: that
training is of no use. `CollapseWatch`, for DPO, adds `kl` to each entry, answers benign prompts where a bound asks for it
(`probe/refused`, `probe/words`), and ends the training at the first entry out of bounds (bounds.py), with the weights of the
last one within them. All workers see the same numbers and stop at the same step.

KL to the reference: with r = log p/p_ref of a whole answer, the mean of -r over the pairs' answers. It estimates
KL(p_ref || p) where the answers were sampled from the reference (Schulman 2020, joschu.net/blog/kl-approx.html, estimator
k1), as in a first round and with `reference: previous`. It may be negative; that it grows means that the policy moves
away from both answers, chosen and rejected, as it does in a collapse.
"""

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from dream_ray.config import CollapseConfig
from dream_ray.evaluate.keywords import sounds_like_refusal
from dream_ray.records import Prompt
from dream_ray.student import StudentReader
from dream_ray.train.bounds import out_of_bounds
from dream_ray.train.numbers import add_numbers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer

logger = logging.getLogger(__name__)

PROBE_TIMES = 8
"""How often in a training benign prompts are answered, besides once before it."""


class EarlyEnd(TrainerCallback):
    """Ends a training. `reason` is "" while it goes on; nothing is saved once it is not."""

    reason = ""

    def end(self, reason: str, state: Any, control: Any) -> None:
        """Stop after this step."""
        self.reason = reason
        logger.warning("training stops at step %d: %s", state.global_step, reason)
        control.should_training_stop, control.should_save = True, False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.reason:
            control.should_save = False


class FiniteWatch(EarlyEnd):
    """For a loss or gradient that is not a finite number."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for name in ("loss", "grad_norm"):
            if logs and not math.isfinite(logs.get(name, 0.0)):
                self.end(f"{name} is {logs[name]} at step {state.global_step}", state, control)


class CollapseWatch(EarlyEnd):
    """For a policy that leaves the bounds of `dpo.stop`. `good_step` is the step that its weights are those of then."""

    def __init__(
        self, trainer: "Trainer", beta: float, bounds: CollapseConfig, probes: Sequence[Prompt], reader: StudentReader
    ):
        self._trainer, self._beta, self._bounds, self._probes, self._reader = trainer, beta, bounds, probes, reader
        self._good: dict[str, Tensor] = {}
        self._words_before: float | None = None
        self._next_probe = 0.0
        self.good_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._bounds.watches:
            return
        self._keep(state.global_step)
        if not self._bounds.asks:
            return
        self._next_probe = state.global_step + state.max_steps / PROBE_TIMES
        earlier = [entry for entry in state.log_history if entry["step"] == 0 and "probe/words" in entry]
        if not earlier:  # a resumed training has the entry of its first attempt
            earlier = [{"step": 0, "epoch": 0.0, **self._ask()}]
            state.log_history.extend(earlier)
        self._words_before = earlier[0]["probe/words"]

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "rewards/chosen" not in logs or self.reason:
            return
        add_numbers(logs, state, {"kl": -(logs["rewards/chosen"] + logs["rewards/rejected"]) / (2 * self._beta)})
        if not self._bounds.watches:
            return
        asked = self._bounds.asks and state.global_step >= self._next_probe
        if asked:
            self._next_probe += state.max_steps / PROBE_TIMES
            add_numbers(logs, state, self._ask())
        if reason := out_of_bounds(logs, self._words_before, self._bounds):
            self.end(reason, state, control)
        elif asked or not self._bounds.asks:
            self._keep(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.reason:
            for name, part in self._trained():
                part.copy_(self._good[name])

    def _trained(self) -> "list[tuple[str, Tensor]]":
        """What is trained, of a sharded model the part that this worker holds."""
        trained = [(name, it.data) for name, it in self._trainer.model.named_parameters() if it.requires_grad]
        return [(name, it.to_local() if hasattr(it, "to_local") else it) for name, it in trained]

    def _keep(self, step: int) -> None:
        """Copy what is trained into the host's memory."""
        self._good = {name: part.to("cpu", copy=True) for name, part in self._trained()}
        self.good_step = step

    def _ask(self) -> dict[str, float]:
        """Answer the probes greedily, each worker its part of them."""
        import torch

        trainer = self._trainer
        accelerator, processor = trainer.accelerator, trainer.processing_class
        size = trainer.args.per_device_train_batch_size
        count = accelerator.num_processes
        # As many batches on every worker, as a sharded model needs; the ones too many are not counted.
        places = range(accelerator.process_index, -(-len(self._probes) // (count * size)) * count * size, count)
        refused = words = 0
        trainer.model.eval()  # the next training step switches back
        for first in range(0, len(places), size):
            batch = [self._probes[place % len(self._probes)] for place in places[first : first + size]]
            shown = [self._reader.pixels(prompt.turns) for prompt in batch]
            inputs = processor(
                text=[self._reader.prompt(prompt.turns) for prompt in batch],
                images=shown if any(shown) else None,
                padding=True,
                padding_side="left",
                add_special_tokens=False,
                return_tensors="pt",
            ).to(accelerator.device)
            with torch.no_grad(), accelerator.autocast():
                answers = trainer.model.generate(
                    **inputs, max_new_tokens=self._bounds.probe_tokens, do_sample=False, synced_gpus=count > 1
                )
            texts = processor.batch_decode(answers[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for place, text in zip(places[first : first + size], texts, strict=True):
                if place < len(self._probes):
                    refused += sounds_like_refusal(text)
                    words += len(text.split())
        sums = accelerator.reduce(torch.tensor([refused, words], dtype=torch.float32, device=accelerator.device))
        return {name: float(sums[at]) / len(self._probes) for at, name in enumerate(("probe/refused", "probe/words"))}
