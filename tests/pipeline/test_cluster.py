"""What a cluster of several machines asks of the scorer's address."""

import pytest
import ray

from dream_ray.config import Config, ConfigError
from dream_ray.pipeline.cluster import scorer
from dream_ray.pipeline.run import Run

TREE = {"name": "try", "student": {"model": "student"}, "sources": [{"path": "p.jsonl"}]}


def test_a_scorer_that_other_machines_cannot_reach_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of two addresses is not to be had on one machine: what Ray says of its nodes is replaced."""
    nodes = [{"Alive": True, "NodeManagerAddress": address} for address in ("10.0.0.1", "10.0.0.2")]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with (
        scorer(Run(Config.model_validate(TREE), str(tmp_path))) as url,
        pytest.raises(ConfigError, match=r"any of the cluster's 2 machines.*judge.host=0.0.0.0"),
    ):
        url()
