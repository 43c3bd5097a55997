"""What is seen of a training while it runs: numbers beside those of TRL, and the files that they go to.

    <stage>/training.jsonl      one line per entry of the trainer's log, whole at any time, also after a resume
    <stage>/tensorboard/        where `report_to` names it

Contract: callbacks for any trainer. `EngineNumbers` adds to each entry `tokens_per_second` (non-padding tokens of all
workers over the wall time since the last entry), `padding_share` (of the tokens that this worker ran through the model) and,
on a GPU, `gpu_memory_gib` (the most that PyTorch held on this worker's since the last entry). `LogFiles` writes. A storage that
fails costs the news, not the training.
"""

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from dream_ray import files

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

log = logging.getLogger(__name__)

WRITE_SECONDS = 10.0
"""Least time between two writings of the files: an object store takes no lines, only whole files."""


def log_uri(stage_uri: str) -> str:
    """The file that holds a training's log."""
    return files.join(stage_uri, "training.jsonl")


def add_numbers(logs: dict[str, Any], state: Any, numbers: dict[str, float]) -> None:
    """Put numbers into the entry that is being logged: what other callbacks are shown, and what is kept."""
    logs.update(numbers)
    state.log_history[-1].update(numbers)


class EngineNumbers(TrainerCallback):
    """Speed, padding and memory; sees the batches by a hook on the model."""

    def __init__(self, model: "Module"):
        self._padding: list[tuple[Tensor, int]] = []
        self._tokens, self._since = 0.0, time.monotonic()
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, model: "Module", args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        mask = inputs.get("attention_mask")
        if model.training and mask is not None:
            self._padding.append((mask.detach().sum(), mask.numel()))  # a tensor still: the step does not wait for it

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = time.monotonic()
        self._padding.clear()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        import torch

        if not logs or "loss" not in logs:
            return
        numbers: dict[str, float] = {}
        now = time.monotonic()
        if "num_tokens" in logs:
            numbers["tokens_per_second"] = (logs["num_tokens"] - self._tokens) / max(now - self._since, 1e-9)
            self._tokens = logs["num_tokens"]
        self._since = now
        if run := sum(count for _, count in self._padding):
            numbers["padding_share"] = 1 - sum(int(tokens) for tokens, _ in self._padding) / run
        self._padding.clear()
        if torch.cuda.is_available():
            numbers["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        add_numbers(logs, state, numbers)


class LogFiles(TrainerCallback):
    """Writes training.jsonl, and what TensorBoard left in `tensorboard` where that is not in the stage's folder already."""

    def __init__(self, stage_uri: str, tensorboard: Path | None):
        self._stage, self._tensorboard, self._written = stage_uri, tensorboard, -WRITE_SECONDS

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and time.monotonic() - self._written >= WRITE_SECONDS:
            self.write(state.log_history)
            self._written = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.write(state.log_history)

    def write(self, history: list[dict[str, Any]]) -> None:
        """Write the files as they are now."""
        try:
            lines = "".join(f"{json.dumps(entry)}\n" for entry in history)
            files.write_atomic(log_uri(self._stage), lines.encode())
            for file in sorted(self._tensorboard.iterdir()) if self._tensorboard else ():
                files.write_atomic(files.join(self._stage, "tensorboard", file.name), file.read_bytes())
        except OSError as error:
            log.warning("the log of %s cannot be written (%s); the training goes on", self._stage, type(error).__name__)


def reporters(report_to: tuple[str, ...], stage_uri: str, scratch: Path) -> list[TrainerCallback]:
    """The callbacks that log to where the config says, then to the stage's folder; to be added after all that log numbers."""
    from transformers.integrations import get_reporting_integration_callbacks

    found: list[TrainerCallback] = []
    unsaved: Path | None = None
    for kind, name in zip(get_reporting_integration_callbacks(list(report_to)), report_to, strict=True):
        callback = kind()
        if name == "tensorboard":
            local = files.is_local(stage_uri)
            folder = files.as_path(stage_uri) / "tensorboard" if local else scratch / "tensorboard"
            folder.mkdir(parents=True, exist_ok=True)
            unsaved = None if local else folder
            callback.logging_dir = str(folder)
        found.append(callback)
    return [*found, LogFiles(stage_uri, unsaved)]
