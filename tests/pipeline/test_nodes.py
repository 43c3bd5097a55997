"""Waiting for room on a real Ray: told, limited, and let go of; and the scorer that makes way and comes back."""

import logging
import threading

import pytest
from ray.util.placement_group import placement_group, remove_placement_group

from dream_ray.config import Config, ConfigError
from dream_ray.pipeline import nodes
from dream_ray.pipeline.cluster import scorer
from dream_ray.pipeline.nodes import NodesMissing, require_room, wait_for_nodes
from dream_ray.pipeline.run import Run

pytestmark = pytest.mark.slow

TREE = {"name": "try", "student": {"model": "student"}, "sources": [{"path": "p.jsonl"}]}


def test_room_is_waited_for_and_the_scorer_makes_way(
    cluster: None, tmp_path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nodes, "FIRST_TOLD_S", 0.2)
    caplog.set_level(logging.INFO, "dream_ray")

    # To this machine none comes: what it lacks is an error of the settings, told at once.
    require_room(Config.model_validate(TREE))
    wait_for_nodes("a stage", [{"CPU": 1}], 10)
    for setting in ({"rollout": {"gpus_per_engine": 1}}, {"cluster": {"resources": {"teacher": {"big": 1}}}}):
        with pytest.raises(ConfigError, match=r"asks Ray for .*this machine, where Ray was started, has .*0 "):
            require_room(Config.model_validate(TREE | setting))
    assert "waiting" not in caplog.text

    # To a cluster some may come: it is waited for, and told.
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(
        NodesMissing, match=r"round-1/dpo: no room came for 2 x \(1 CPU, 1 GPU\) within 1 s.*now: 1, with 4 CPU, 0 GPU"
    ):
        wait_for_nodes("round-1/dpo", [{"CPU": 1, "GPU": 1}] * 2, 1)
    assert "round-1/dpo: waiting for room for 2 x (1 CPU, 1 GPU)" in caplog.text

    # What was asked for in vain is asked for no longer, and what comes in time is used.
    other = placement_group([{"CPU": 4}])
    assert other.wait(10)
    threading.Timer(1.5, remove_placement_group, [other]).start()
    wait_for_nodes("a stage", [{"CPU": 4}], 60)
    assert "a stage: there is room, after" in caplog.text

    # The scorer goes when it is told to, leaves its place, and is another one when it is asked for again.
    asked = {"resources": {"judge": {"here": 1.0}}, "wait_for_nodes_s": 0.5}
    run = Run(Config.model_validate(TREE | {"cluster": asked}), str(tmp_path / "run"))
    with scorer(run) as url, pytest.raises(NodesMissing, match=r"the scorer: no room came for 1 CPU, 1 here"):
        url()
    run = Run(Config.model_validate(TREE), str(tmp_path / "run"))
    with scorer(run) as url:
        first = url()
        assert url() == first
        run.release_scorer()
        wait_for_nodes("an engine", [{"CPU": 4}], 30)
        run.release_scorer()
        assert url()
    assert caplog.text.count("scorer: taken down") == 1
    wait_for_nodes("a stage", [{"CPU": 4}], 30)
