"""Ray Train around a Hugging Face trainer: workers, threads, checkpoints, resume, progress, the adapter that comes out.

Contract: `fit` runs a function that builds a trainer on every Ray Train worker (in this process where
`num_workers` is 0), lets it train, and returns what rank 0 saw. A checkpoint goes to Ray Train's storage after each
epoch; after a crash, of a worker or of the whole driver, the same call goes on from the last one. The final adapter is
in `output`/adapter when `fit` returns. Nothing here knows SFT from DPO.
"""

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dream_ray import files
from dream_ray.config import ConfigError, TrainConfig
from dream_ray.progress import Progress, write_training
from dream_ray.train.policy import store_folder

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""How often Ray Train starts lost workers again, each time from the last checkpoint, before the run stops."""

CPU_WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""OpenMP threads that wait sleep. Spinning ones, the default, keep the cores from each other as soon as another process
wants one, and Ray always has some: beside busy processes on 2 cores a micro batch was seen to take 36 s, and 2.4 s so."""

RUN_NAME = "ray_train"
"""The folder of Ray Train's checkpoints in a training's output."""

LOG_LINES = 50
"""About how many lines of progress and points of history a training gives, at least every 10 steps."""


@dataclass(frozen=True)
class TrainResult:
    """What a training gave. `loss` is the last one logged; `history` holds the dicts that the trainer logged, in order.

    `tokens` counts the non-padding tokens of all batches that were trained on, of all workers.
    """

    adapter: str
    steps: int
    examples: int
    loss: float
    history: list[dict[str, float]]
    seconds: float
    tokens: int


def accumulation_steps(train: TrainConfig) -> int:
    """Micro batches per optimiser step and worker. Raises ConfigError where the batch size does not divide."""
    at_once = train.micro_batch_size * max(1, train.num_workers)
    if train.batch_size % at_once:
        raise ConfigError(
            f"batch_size = {train.batch_size} is not a multiple of micro_batch_size x workers = "
            f"{train.micro_batch_size} x {max(1, train.num_workers)} = {at_once}, so the optimiser's batch cannot be "
            f"split evenly. Set batch_size to a multiple of {at_once}, or lower micro_batch_size or num_workers."
        )
    return train.batch_size // at_once


def absolute(uri: str) -> str:
    """The uri in a form that means the same on every worker: Ray Train changes their working directory."""
    return files.resolve(uri)[1] if files.is_local(uri) else uri


def drop_torn_checkpoints(output: str) -> None:
    """Remove the checkpoints whose list a killed driver left half written: Ray Train would fail on it at each attempt.

    Ray Train writes the list in place. Training then starts from its beginning.
    """
    folder = files.join(output, RUN_NAME)
    try:
        json.loads(files.read_bytes(files.join(folder, "checkpoint_manager_snapshot.json")))
    except FileNotFoundError:
        return
    except ValueError:
        logger.warning("the list of checkpoints in %s is torn; training starts from its beginning", folder)
        files.delete_folder(folder)


def fit(
    build: Callable[[dict[str, Any], dict[str, Any]], "Trainer"],
    settings: dict[str, Any],
    train: TrainConfig,
    output: str,
) -> TrainResult:
    """Train. `build(settings, arguments)` makes the trainer on a worker; `arguments` go into its TrainingArguments.

    `settings` must be picklable and small: workers read their data themselves. `output` is the uri of a folder that
    exists and belongs to this training alone. Raises ray.train's TrainingFailedError after `MAX_FAILURES` restarts.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    accumulation_steps(train)
    output = absolute(output)
    drop_torn_checkpoints(output)
    started = time.monotonic()

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Leave Ctrl-C to the command. Ray's handler stays after the training, when it stops nothing any more."""

    trainer = Trainer(
        _work,
        train_loop_config={"build": build, "settings": settings, "train": train, "output": output},
        torch_config=TorchConfig(backend="nccl" if train.use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=train.num_workers, use_gpu=train.use_gpu),
        run_config=RunConfig(
            # The same name in the same folder is what makes a restarted driver find its checkpoints.
            name=RUN_NAME,
            storage_path=output,
            # The older one is removed after the newer one is uploaded whole and registered.
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            worker_runtime_env={} if train.use_gpu else {"env_vars": CPU_WORKER_ENVIRONMENT},
        ),
    )
    seen = trainer.fit().return_value
    return TrainResult(adapter=files.join(output, "adapter"), seconds=time.monotonic() - started, **seen)


def _work(config: dict[str, Any]) -> dict[str, Any] | None:
    """On every worker: build, resume, train; rank 0 stores the adapter and returns what TrainResult needs."""
    import ray.train
    from transformers import PrinterCallback

    from dream_ray.train.answer_logits import score_answers_only  # imports TRL, which takes seconds

    train: TrainConfig = config["train"]
    logging.getLogger("dream_ray").setLevel(logging.INFO)
    context = ray.train.get_context()
    if not train.use_gpu:
        _use_all_cores(context.get_local_world_size())
        score_answers_only()
    with tempfile.TemporaryDirectory(prefix="dream-ray-train-") as scratch:
        trainer = config["build"](config["settings"], _arguments(train, Path(scratch, "trainer")))
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_report_callback(config["output"]))
        steps = _planned_steps(len(trainer.train_dataset), train)
        trainer.args.logging_steps = max(1, min(10, steps // LOG_LINES))
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            trainer.train()
        else:
            with checkpoint.as_directory() as folder:
                logger.info("going on from a checkpoint")
                trainer.train(resume_from_checkpoint=str(folder))
        if context.get_world_rank() != 0:
            return None
        folder = Path(scratch, "adapter")
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.save_pretrained(folder, selected_adapters=["default"])
        store_folder(folder, files.join(config["output"], "adapter"))
    history = [{key: float(value) for key, value in entry.items()} for entry in trainer.state.log_history]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    if not losses or not math.isfinite(losses[-1]):
        raise RuntimeError(
            f"Training ended with the loss {losses[-1] if losses else None} after {trainer.state.global_step} steps: "
            "the adapter is of no use. Lower the learning rate, or train in float32 (bf16: false)."
        )
    return {
        "steps": trainer.state.global_step,
        "examples": len(trainer.train_dataset),
        "loss": losses[-1],
        "history": history,
        "tokens": int(max(entry.get("num_tokens", 0) for entry in history)),
    }


def _arguments(train: TrainConfig, folder: Path) -> dict[str, Any]:
    """What the TrainingArguments of SFT and DPO share."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": train.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(train),
        "learning_rate": train.learning_rate,
        "num_train_epochs": train.epochs,
        "lr_scheduler_type": "constant_with_warmup" if train.schedule == "constant" else train.schedule,
        "warmup_steps": train.warmup_ratio,  # transformers 5 reads a value below 1 as a share of all steps
        "max_grad_norm": train.max_grad_norm,
        "bf16": train.bf16,
        "use_cpu": not train.use_gpu,
        # It trades a third more time for memory, which is what a GPU lacks and a host has.
        "gradient_checkpointing": train.use_gpu,
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "logging_strategy": "steps",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,  # the data set's columns become the trainer's only when a row is read
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": train.use_gpu,
        "max_length": None,  # any cut would take image tokens with it
    }


def _planned_steps(examples: int, train: TrainConfig) -> int:
    return max(1, math.ceil(math.ceil(examples / train.batch_size) * train.epochs))


def _use_all_cores(workers_here: int) -> None:
    """Ray sets OMP_NUM_THREADS to a worker's logical CPUs, 1 here; share the node's cores among its workers instead."""
    import psutil
    import torch

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(allowed, psutil.cpu_count(logical=False) or allowed)
    torch.set_num_threads(max(1, cores // workers_here))


def _report_callback(output: str) -> "TrainerCallback":
    """A callback that logs progress, also as a file in `output`, and reports each checkpoint from rank 0.

    Ray Train's own one has every rank copy a checkpoint folder that only the first has, and reports a mix of old logs.
    Made in a function so that importing this module does not import transformers.
    """
    import ray.train
    from transformers import TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint

    class ReportCallback(TrainerCallback):
        def __init__(self) -> None:
            self.started, self.first_step, self.tokens_before = time.monotonic(), 0, 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started, self.first_step = time.monotonic(), state.global_step
            self.tokens_before = max((entry.get("num_tokens", 0.0) for entry in state.log_history), default=0.0)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_log = True  # so that the history ends with the last step, in a checkpoint as at the end

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "num_tokens" in logs:  # TRL counts from 0 again after a resume
                state.log_history[-1]["num_tokens"] += self.tokens_before
            done = state.global_step - self.first_step
            if state.is_world_process_zero and logs and "loss" in logs and done:
                eta = (time.monotonic() - self.started) / done * (state.max_steps - state.global_step)
                logger.info(
                    "step %d/%d, loss %.4f, eta %.0f s", state.global_step, state.max_steps, float(logs["loss"]), eta
                )
                rate = done / max(time.monotonic() - self.started, 1e-9)
                write_training(output, Progress("training", "steps", state.global_step, state.max_steps, rate))

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            checkpoint = None
            if state.is_world_process_zero:
                checkpoint = ray.train.Checkpoint(get_last_checkpoint(args.output_dir))
            # A barrier: every rank reports, rank 0 alone brings files.
            ray.train.report({"step": state.global_step, "epoch": state.epoch}, checkpoint=checkpoint)

    return ReportCallback()
