"""Who holds machines at the same time: judge and engines, judge and training; together where there is room, else in turns.

Contract: pure. A bundle is what one actor, replica or worker asks of Ray, by resource. Engines are Ray Data actors, which
go with their pass, and a teacher's go before the first engine comes; so what has to be decided is when the scorer stands.
In turns, answers are sampled first and judged when the engines have gone, and the scorer is gone while a policy trains.
CPUs are no reason to take turns: judge, engines and training ask for one each.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dream_ray.chat.factory import chat_options
from dream_ray.config import Config, JudgeConfig, Role, TrainConfig
from dream_ray.engine.settings import actor_options

Bundle = dict[str, float]

ONE_TASK: Bundle = {"CPU": 1}
"""What a pass without actors needs to begin."""


@dataclass(frozen=True)
class Placement:
    """Whether the scorer stands while engines sample and while a policy trains, and why, in words for the log."""

    judge_while_sampling: bool
    judge_while_training: bool
    words: str


def role_options(config: Config, role: Role) -> dict[str, Any]:
    """Ray's options for what the config says that a role asks for beside CPUs and GPUs."""
    extra = config.cluster.resources.get(role)
    return {"resources": dict(extra)} if extra else {}


def engine(config: Config) -> Bundle:
    """A rollout engine."""
    return _bundle(actor_options(config.rollout.gpus_per_engine, 1) | role_options(config, "rollout"))


def teacher(config: Config) -> Bundle:
    """An actor that holds a teacher."""
    return _bundle(chat_options(config.teacher.chat, 1) | role_options(config, "teacher"))


def judge(config: Config) -> Bundle:
    """A replica of the scorer, or an actor that holds a judge."""
    return _bundle(chat_options(config.judge.chat, 1) | role_options(config, "judge"))


def training(config: Config, train: TrainConfig) -> list[Bundle]:
    """The workers that a training cannot begin without; none where it runs inside the driver."""
    least = train.num_workers[0] if isinstance(train.num_workers, tuple) else train.num_workers
    worker = {"CPU": 1.0, "GPU": float(train.use_gpu)} | config.cluster.resources.get("training", {})
    return [{name: amount for name, amount in worker.items() if amount}] * least


def replicas(judge_config: JudgeConfig) -> tuple[int, int]:
    """How many replicas the scorer starts with, and the most that it may grow to."""
    if judge_config.autoscale is None:
        return judge_config.replicas, judge_config.replicas
    return max(1, judge_config.autoscale[0]), judge_config.autoscale[1]


def place(config: Config, there: Mapping[str, float]) -> Placement:
    """Decide by what there is, or may come: amounts of all machines together, by resource."""
    at_first, at_most = replicas(config.judge)
    engines = scarce([engine(config)] * config.rollout.pool[0])
    judging, grown = scarce([judge(config)] * at_first), scarce([judge(config)] * at_most)
    if not judging:
        return Placement(True, True, "the judge asks for no GPU, so it judges while engines sample and stays")
    trained = scarce(training(config, config.dpo))
    sampling_fits = fits((engines, judging), there)
    training_fits = fits((trained, grown), there)
    room = amounts({name: there.get(name, 0.0) for name in {**engines, **grown, **trained}})
    words = (
        f"there is room for {room}. Engines ask for {amounts(engines)} and the judge for {amounts(judging)}: "
        + ("answers are judged while others are sampled" if sampling_fits else "all answers are sampled, then judged")
        + f". Training asks for {amounts(trained)} and the judge for up to {amounts(grown)}: "
        + ("the scorer stays" if training_fits else "the scorer goes before training and comes back after it")
    )
    if not (sampling_fits and training_fits) and config.cluster.gpus is None:
        words += ". Where more GPUs come when they are asked for, say how many by cluster.gpus"
    return Placement(sampling_fits, training_fits, words)


def scarce(bundles: Iterable[Bundle]) -> Bundle:
    """The sum of bundles without their CPUs."""
    total: Bundle = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            if name != "CPU":
                total[name] = total.get(name, 0.0) + amount
    return total


def fits(demands: Iterable[Bundle], there: Mapping[str, float]) -> bool:
    """Whether all demands can be met at the same time."""
    total = scarce(demands)
    return all(amount <= there.get(name, 0.0) for name, amount in total.items())


def amounts(bundle: Mapping[str, float]) -> str:
    """A bundle in words, "1 CPU, 2 GPU"; "no GPU" where it is empty."""
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(bundle.items())) or "no GPU"


def _bundle(options: Mapping[str, Any]) -> Bundle:
    """What Ray reserves for an actor with these options."""
    asked = {
        "CPU": float(options.get("num_cpus", 1)),
        "GPU": float(options.get("num_gpus", 0)),
        **options.get("resources", {}),
    }
    return {name: amount for name, amount in asked.items() if amount}
