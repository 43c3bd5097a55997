"""Ray Train around a Hugging Face trainer: workers, threads, checkpoints, resume, progress, the policy that comes out.

Contract: `fit` runs a function that builds a trainer on every Ray Train worker (in this process where
`num_workers` is 0), lets it train, and returns what rank 0 saw. A checkpoint goes to Ray Train's storage after each
epoch, or every `checkpoint_steps`, while training goes on; after a crash, of a worker or of the whole driver, the same call
goes on from the last one. When `fit` returns, the adapter is in `output`/adapter, or the model in `output`/model where all of
it is trained; while it runs, the log is in `output`/training.jsonl. What trying again would not mend (a loss that is no
number, no memory, an image that is gone) raises TrainingBroken. Nothing here knows SFT from DPO.
"""

import importlib.util
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dream_ray import cpu, files
from dream_ray.config import ClusterConfig, ConfigError, TrainConfig
from dream_ray.images import BadImage
from dream_ray.progress import Progress, write_training
from dream_ray.scratch import ScratchFolder
from dream_ray.stopwatch import Stopwatch
from dream_ray.train.broken import KEPT, NOT_FINITE, TrainingBroken, is_out_of_memory, no_memory
from dream_ray.train.layout import rename_for_engines
from dream_ray.train.policy import store_folder
from dream_ray.train.scaling import (
    allow_fsdp_on_cpu,
    batches,
    check_strategy,
    prepare,
    strategy_arguments,
    trained_weights,
)

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

logger = logging.getLogger(__name__)

MAX_FAILURES = 3
"""How often Ray Train starts lost workers again, each time from the last checkpoint, before the run stops."""

WORKERS_WITHIN_S = 60.0
"""How long Ray Train waits for its workers before it counts a failure of its own and asks again (its default)."""

RUN_NAME = "ray_train"
"""The folder of Ray Train's checkpoints in a training's output."""

LOG_LINES = 50
"""About how many lines of progress and points of history a training gives, at least every 10 steps."""


@dataclass(frozen=True)
class TrainResult:
    """What a training gave: a LoRA adapter or, where all weights were trained, a model.

    `loss` is the last one logged; `history` holds the dicts that the trainer logged, in order, without its summary at the end.
    `tokens` counts the non-padding tokens of all batches that were trained on, of all workers. `stopped` says why the
    training ended before its time, with the weights after `steps` steps; "" where it did not. `skipped` counts the rows
    that were left out, by reason. `gpu_held_s` are seconds times the workers' GPUs, `gpu_idle_s` those of them before and
    after the training itself.
    """

    adapter: str | None
    model: str | None
    steps: int
    examples: int
    loss: float
    history: list[dict[str, float]]
    seconds: float
    tokens: int
    stopped: str = ""
    skipped: Mapping[str, int] = field(default_factory=dict)
    gpu_held_s: float = 0.0
    gpu_idle_s: float = 0.0


def check_reporters(train: TrainConfig) -> None:
    """Raise ConfigError where the training's log shall go to something that is not installed."""
    for name in train.report_to:
        packages = ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)
        if not any(importlib.util.find_spec(package) for package in packages):
            raise ConfigError(
                f"report_to names {name}, but {' or '.join(packages)} is not installed here. Install it on every machine that "
                "trains, or leave it out: training.jsonl holds the same numbers."
            )


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
    cluster: ClusterConfig,
) -> TrainResult:
    """Train. `build(settings, arguments)` makes the trainer on a worker; `arguments` go into its TrainingArguments.

    `settings` must be picklable and small: workers read their data themselves. `output` is the uri of a folder that
    exists and belongs to this training alone. Raises TrainingBroken, and ray.train's TrainingFailedError after
    `MAX_FAILURES` restarts.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    check_strategy(train)
    check_reporters(train)
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
        scaling_config=ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=train.use_gpu,
            resources_per_worker={
                "CPU": 1,
                **({"GPU": 1} if train.use_gpu else {}),
                **cluster.resources.get("training", {}),
            },
        ),
        run_config=RunConfig(
            # The same name in the same folder is what makes a restarted driver find its checkpoints.
            name=RUN_NAME,
            storage_path=output,
            # An older one is removed after the newer one is uploaded whole and registered.
            checkpoint_config=CheckpointConfig(num_to_keep=train.keep_checkpoints),
            failure_config=FailureConfig(
                max_failures=MAX_FAILURES,
                # Each is a wait of Ray Train's for machines in place of lost ones, which would otherwise have no end.
                controller_failure_limit=math.ceil(cluster.wait_for_nodes_s / WORKERS_WITHIN_S),
            ),
            worker_runtime_env={} if train.use_gpu else {"env_vars": cpu.WAITING | cpu.KEEPING},
        ),
    )
    try:
        seen = trainer.fit().return_value
    except (TrainingBroken, BadImage) as error:  # in this process
        raise TrainingBroken(f"{error}\n{KEPT}") from error
    except WorkerGroupError as error:
        for cause in error.worker_failures.values():
            if isinstance(cause, (TrainingBroken, BadImage)):
                raise TrainingBroken(f"{cause}\n{KEPT}") from error
        raise
    if "broken" in seen:
        raise TrainingBroken(f"{seen['broken']}\n{KEPT}")
    kind = seen.pop("kind")
    adapter, model = (files.join(output, name) if kind == name else None for name in ("adapter", "model"))
    return TrainResult(adapter=adapter, model=model, seconds=time.monotonic() - started, **seen)


def _work(config: dict[str, Any]) -> dict[str, Any] | None:
    """On every worker: build, resume, train; rank 0 stores the adapter and returns what TrainResult needs."""
    import ray.train

    # They import TRL and transformers, which takes seconds.
    from dream_ray.train.answer_logits import score_answers_only
    from dream_ray.train.collapse import CollapseWatch, EarlyEnd, FiniteWatch

    train: TrainConfig = config["train"]
    begun, trained = time.monotonic(), Stopwatch()
    logging.getLogger("dream_ray").setLevel(logging.INFO)
    context = ray.train.get_context()
    if not train.use_gpu:
        _use_all_cores(context.get_local_world_size())
        if train.strategy == "fsdp2":
            allow_fsdp_on_cpu()
    with ScratchFolder("train") as scratch, nullcontext() if train.use_gpu else score_answers_only():
        arguments = _arguments(train, Path(scratch, "trainer"), context.get_world_size())
        trainer = config["build"](config["settings"], arguments)
        prepare(trainer, train)
        equip(trainer, train, config["output"], Path(scratch), _report_callback(config["output"], train))
        checkpoint = ray.train.get_checkpoint()
        trained.run(True)
        try:
            if checkpoint is None:
                trainer.train()
            else:
                with checkpoint.as_directory() as folder:
                    logger.info("going on from a checkpoint")
                    trainer.train(resume_from_checkpoint=str(folder))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if context.get_world_size() > 1:  # the others wait for this one and have to be ended with it
                raise TrainingBroken(no_memory(train, error)) from error
            return {"broken": no_memory(train, error)}
        trained.run(False)
        ends = [it for it in trainer.callback_handler.callbacks if isinstance(it, EarlyEnd) and it.reason]
        if not_finite := [end.reason for end in ends if isinstance(end, FiniteWatch)]:
            return {"broken": NOT_FINITE.format(reason=not_finite[0])}
        weights = trained_weights(trainer, train)
        if context.get_world_rank() != 0:
            return None
        kind = _save(trainer, train, Path(scratch, "trained"), weights)
        store_folder(Path(scratch, "trained"), files.join(config["output"], kind))
    # Without the trainer's summary, whose mean loss and times leave out what an earlier attempt did.
    lines = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    history = [{key: float(value) for key, value in entry.items()} for entry in lines]
    collapsed = next((end for end in ends if isinstance(end, CollapseWatch)), None)
    gpus = context.get_world_size() if train.use_gpu else 0
    held = time.monotonic() - begun
    return {
        "kind": kind,
        "steps": collapsed.good_step if collapsed else trainer.state.global_step,
        "examples": len(trainer.train_dataset),
        "loss": [entry["loss"] for entry in history if "loss" in entry][-1],
        "history": history,
        "tokens": int(max(entry.get("num_tokens", 0) for entry in history)),
        "stopped": collapsed.reason if collapsed else "",
        "gpu_held_s": gpus * held,
        "gpu_idle_s": gpus * (held - trained.seconds),
    }


def _save(trainer: "Trainer", train: TrainConfig, folder: Path, weights: dict[str, Any] | None) -> str:
    """Write what was trained, as transformers loads it; says whether it is an "adapter" or a "model"."""
    import torch

    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder, selected_adapters=["default"], state_dict=weights)
        return "adapter"
    # Weights are trained in float32; with bf16 an engine reads them in bfloat16 anyway, at half the size.
    dtype = torch.bfloat16 if train.bf16 else torch.float32
    whole = model.state_dict() if weights is None else weights
    model.save_pretrained(folder, state_dict={name: weight.to(dtype) for name, weight in whole.items()})
    # transformers wrote the dtype of the model in memory.
    config = json.loads((folder / "config.json").read_text()) | {"dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    trainer.processing_class.save_pretrained(folder)
    rename_for_engines(folder)
    return "model"


def equip(trainer: "Trainer", train: TrainConfig, output: str, scratch: Path, *others: "TrainerCallback") -> None:
    """Give a trainer what every training here has: its numbers, its watch over them, its files; `others` before the files."""
    from transformers import PrinterCallback

    from dream_ray.train.collapse import FiniteWatch
    from dream_ray.train.numbers import EngineNumbers, reporters

    trainer.remove_callback(PrinterCallback)
    callbacks = [EngineNumbers(trainer.model), FiniteWatch(), *others]
    for callback in (*callbacks, *reporters(train.report_to, output, scratch)):
        trainer.add_callback(callback)
    steps = _planned_steps(len(trainer.train_dataset), train)
    trainer.args.logging_steps = max(1, min(10, steps // LOG_LINES))


def _arguments(train: TrainConfig, folder: Path, workers: int = 1) -> dict[str, Any]:
    """What the TrainingArguments of SFT and DPO share, for one of so many workers."""
    at_once, accumulated = batches(train, workers)
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": accumulated,
        "learning_rate": train.learning_rate,
        "num_train_epochs": train.epochs,
        "lr_scheduler_type": "constant_with_warmup" if train.schedule == "constant" else train.schedule,
        "warmup_steps": train.warmup_ratio,  # transformers 5 reads a value below 1 as a share of all steps
        "max_grad_norm": train.max_grad_norm,
        "bf16": train.bf16,
        "use_cpu": not train.use_gpu,
        "gradient_checkpointing": train.checkpointing,
        "save_strategy": "steps" if train.checkpoint_steps else "epoch",
        "save_steps": train.checkpoint_steps or 0,
        "logging_strategy": "steps",
        "logging_nan_inf_filter": False,  # it would log the mean of earlier losses in place of one that is no number
        "report_to": "none",  # the reporters are added after the callbacks that add numbers
        "disable_tqdm": True,
        "remove_unused_columns": False,  # the data set's columns become the trainer's only when a row is read
        "dataloader_pin_memory": train.use_gpu,
        "max_length": None,  # any cut would take image tokens with it
        **strategy_arguments(train),
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


def _report_callback(output: str, train: TrainConfig) -> "TrainerCallback":
    """A callback that logs progress, also as a file in `output`, and reports each checkpoint: from rank 0, or from all where
    each has a part. It is uploaded while training goes on.

    Ray Train's own one has every rank copy a checkpoint folder that only the first has, and reports a mix of old logs.
    Made in a function so that importing this module does not import transformers.
    """
    import ray.train
    from ray.train import CheckpointUploadMode
    from transformers import TrainerCallback

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
            if state.is_world_process_zero or train.strategy != "ddp":
                # Out of the trainer's sight, which would count it; Ray Train removes it once it is uploaded.
                folder = Path(args.output_dir, f"upload-{state.global_step}")
                Path(args.output_dir, f"checkpoint-{state.global_step}").rename(folder)
                # The reference's adapter: it never changes, and where a checkpoint has one in a folder of its own,
                # transformers restores that one alone and goes on with the policy's first weights.
                for other in folder.glob("*/adapter_config.json"):
                    shutil.rmtree(other.parent)
                checkpoint = ray.train.Checkpoint(str(folder))
            ray.train.report(
                {"step": state.global_step, "epoch": state.epoch},
                checkpoint=checkpoint,
                checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            )

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ray.train.report({"step": state.global_step})  # reports keep their order: this one waits for all uploads

    return ReportCallback()
