"""Waiting for machines: what a stage asks for, for how long it has waited, and when it gives up.

Contract: `wait_for_nodes` asks Ray for the least that a stage needs to begin, all of it at once (a placement group, which an
autoscaler sees), says so while it does not come, and lets go of it when it is there: the stage's own actors take the place.
It raises NodesMissing after the limit, and ConfigError at once where Ray was started on this machine, to which none comes.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from dream_ray.config import ClusterConfig, Config, ConfigError
from dream_ray.pipeline import placement
from dream_ray.pipeline.joined import joined_cluster
from dream_ray.pipeline.parts import StageFailed
from dream_ray.pipeline.placement import Bundle, amounts

log = logging.getLogger(__name__)

FIRST_TOLD_S = 5.0
"""A wait shorter than this is not worth a line."""
TOLD_EVERY_S = 30.0
"""Between two lines about one wait."""
LOOK_EVERY_S = 0.5
"""Between two looks; a signal is noticed after one."""


class NodesMissing(StageFailed):
    """The machines that a stage needs did not come within the limit."""


def total_resources(config: ClusterConfig) -> dict[str, float]:
    """What all machines of the cluster have together, or may come to have, by resource."""
    there: dict[str, float] = ray.cluster_resources()
    return there | ({} if config.gpus is None else {"GPU": float(config.gpus)})


def require_here(what: str, bundles: Sequence[Bundle]) -> None:
    """Raise ConfigError where Ray was started on this machine and can never place one of these bundles."""
    if joined_cluster():
        return
    there = ray.cluster_resources()
    for bundle in bundles:
        if any(amount > there.get(name, 0.0) for name, amount in bundle.items()):
            has = amounts({name: there.get(name, 0.0) for name in bundle})
            raise ConfigError(
                f"For {what} the config asks Ray for {amounts(bundle)}; this machine, where Ray was started, has {has}. "
                "Change that setting (gpus_per_engine, chat.gpus, use_gpu, cluster.resources), or submit the run to a cluster "
                "(docs/aws.md, docs/gcp.md, docs/kubernetes.md)."
            )


def require_room(config: Config) -> None:
    """Raise ConfigError for the first role of the loop that the Ray on this machine can never hold."""
    require_here("the teacher", [placement.teacher(config)])
    require_here("an engine", [placement.engine(config)])
    require_here("the judge", [placement.judge(config)])
    require_here("a training worker", placement.training(config, config.sft) + placement.training(config, config.dpo))


def wait_for_nodes(what: str, bundles: Sequence[Bundle], limit_s: float) -> None:
    """Return when the cluster has room for all bundles at once."""
    if not bundles:
        return
    require_here(what, bundles)
    started = told = time.monotonic()
    asked = ", ".join(
        f"{count} x ({text})" if count > 1 else text for text, count in Counter(map(amounts, bundles)).items()
    )
    group = placement_group([dict(bundle) for bundle in bundles], strategy="PACK", name="dream-ray-wait")
    try:
        while not group.wait(LOOK_EVERY_S):
            waited = time.monotonic() - started
            if waited >= limit_s:
                raise NodesMissing(
                    f"{what}: no room came for {asked} within {waited:.0f} s (cluster.wait_for_nodes_s). {_state(bundles)} "
                    "`ray status` says which machines were asked for. Usual causes: a quota, no spot machines to be had, "
                    "max_workers of the cluster file, no type of machine that has this, or other work on the cluster. What "
                    "is done is kept; the same command goes on from there."
                )
            if time.monotonic() - told >= (FIRST_TOLD_S if told == started else TOLD_EVERY_S):
                told = time.monotonic()
                log.info(
                    "%s: waiting for room for %s, for %.0f s now, %.0f s at most. %s",
                    what, asked, waited, limit_s, _state(bundles),
                )  # fmt: skip
    finally:
        remove_placement_group(group)
    if told != started:
        log.info("%s: there is room, after %.0f s", what, time.monotonic() - started)


def _state(bundles: Sequence[Bundle]) -> str:
    """What of the things asked for the cluster has and what is free of it."""
    names = {name for bundle in bundles for name in bundle}
    there, free = ray.cluster_resources(), ray.available_resources()
    machines = sum(1 for node in ray.nodes() if node["Alive"])
    has = amounts({name: there.get(name, 0.0) for name in names})
    left = amounts({name: free.get(name, 0.0) for name in names})
    return f"Machines now: {machines}, with {has}, of which {left} are free."
