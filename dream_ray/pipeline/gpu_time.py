"""GPU seconds of a stage: how long its engines held GPUs, and how long they had nothing to do meanwhile.

Contract: one `GpuBook` actor a driver, on the driver's node, that dies with it. Every process of ours that holds an engine on
GPUs tells it, every TELL_EVERY_S and from a thread, how long it has held them and how long its engine had work; loading a
model is not work. Nobody waits for the news to arrive. Seconds belong to the stage that is under way when they are told, so
that a judge which keeps its GPU while the student trains shows in the training's row. A process that dies costs its last
TELL_EVERY_S at most. Processes without GPUs tell nothing. Training counts for itself (train/ray_adapter.py).
"""

import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dream_ray.config import ChatConfig, Config, VllmConfig
from dream_ray.pipeline.measures import count_gpu_seconds
from dream_ray.stopwatch import Stopwatch

TELL_EVERY_S = 2.0
"""Short against a stage that loads a model; for 64 engines 32 messages a second."""
BETWEEN = "between stages"
"""Where seconds count that belong to no stage."""


@dataclass(frozen=True)
class GpuSeconds:
    """Seconds times GPUs: `held`, and of them `idle`. Both 0 where no GPU was held."""

    held: float = 0.0
    idle: float = 0.0

    def __add__(self, other: "GpuSeconds") -> "GpuSeconds":
        return GpuSeconds(self.held + other.held, self.idle + other.idle)


NO_GPU = GpuSeconds()
"""Of a stage that held none."""


class GpuBook:
    """Adds up GPU seconds; the content of the actor."""

    def __init__(self) -> None:
        self._stage = BETWEEN
        self._stages: dict[str, GpuSeconds] = {}
        self._told: dict[str, tuple[float, float]] = {}

    def begin(self, stage: str) -> None:
        """Seconds from now on belong to this stage."""
        self._stage = stage
        self._stages[stage] = NO_GPU

    def tell(self, holder: str, gpus: float, held_s: float, worked_s: float) -> None:
        """How long a process has held its GPUs and its engine has worked, since it began to."""
        before = self._told.get(holder, (0.0, 0.0))
        self._told[holder] = (held_s, worked_s)
        held, worked = gpus * (held_s - before[0]), gpus * (worked_s - before[1])
        idle = max(0.0, held - worked)
        self._stages[self._stage] = self._stages.get(self._stage, NO_GPU) + GpuSeconds(held, idle)
        count_gpu_seconds(self._stage, held - idle, idle)

    def end(self) -> GpuSeconds:
        """What the stage that was begun last took."""
        stage, self._stage = self._stage, BETWEEN
        return self._stages.pop(stage, NO_GPU)


class GpuTeller:
    """The `GpuWatch` of an engine's process, which makes it start telling."""

    def __init__(self, book: Any):
        self._book = book

    def watch(self) -> Stopwatch:
        """From now on this process's GPUs count as held; the stopwatch has to run while they work."""
        worked = Stopwatch()
        gpus = float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0))
        if gpus:
            # The thread knows the stopwatch only, so that the engine's end does not hang on it.
            arguments = (self._book, gpus, worked)
            threading.Thread(target=_tell, args=arguments, name="gpu-seconds", daemon=True).start()
        return worked


def _tell(book: Any, gpus: float, worked: Stopwatch) -> None:
    holder, start = uuid.uuid4().hex, time.monotonic()
    while True:
        time.sleep(TELL_EVERY_S)
        book.tell.remote(holder, gpus, time.monotonic() - start, worked.seconds)


def engines_hold_gpus(config: Config) -> bool:
    """True where an engine that the run starts sits on a GPU."""
    return config.rollout.gpus_per_engine > 0 or any(map(_holds_gpus, (config.teacher.chat, config.judge.chat)))


def _holds_gpus(chat: ChatConfig) -> bool:
    return isinstance(chat, VllmConfig) and chat.gpus > 0


def start_book() -> Any:
    """The actor's handle. It has no name, so that no run finds the book of another."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(GpuBook).options(num_cpus=0, scheduling_strategy=here)
    return actor.remote()
