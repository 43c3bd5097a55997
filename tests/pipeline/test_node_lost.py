"""A node of a three-node cluster dies while a stage works on it: the stage goes on, and no row is lost or doubled."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from dream_ray.pipeline.cluster import _quiet_data
from tests.pipeline.resumed_driver import PARTS, carry_out, fails, ids
from tests.pipeline.test_resume import rows


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, on which the driver is, and two nodes for the work."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            nodes.add_node(num_cpus=3)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def kill_working_node(cluster: Cluster) -> None:
    """End the node whose raylet has an actor of the stage below it."""
    for node in list(cluster.worker_nodes):
        (raylet,) = node.all_processes["raylet"]
        children = psutil.Process(raylet.process.pid).children(recursive=True)
        if any("Slow" in " ".join(child.cmdline()) for child in children):
            return cluster.remove_node(node, allow_graceful=False)
    raise AssertionError("no node had the actor")


@pytest.mark.slow
def test_a_stage_whose_node_dies_goes_on_on_another(cluster: Cluster, tmp_path: Path) -> None:
    _quiet_data()
    asked = tmp_path / "asked.txt"
    finished: set[str] = set()
    problems: list[BaseException] = []

    def strike() -> None:
        try:
            deadline = time.monotonic() + 360
            while len(finished) < PARTS // 4:
                assert time.monotonic() < deadline
                finished.update(path.stem for path in tmp_path.glob("run/stages/copy/*/parts/*.json"))
                time.sleep(0.02)
            kill_working_node(cluster)
        except BaseException as error:
            problems.append(error)
        finally:
            (tmp_path / "go-on").touch()

    striking = threading.Thread(target=strike)
    striking.start()
    carry_out(tmp_path / "run", asked)
    striking.join()
    assert not problems
    assert len(cluster.worker_nodes) == 1
    every = [name for part in range(PARTS) for name in ids(part)]
    for key in ("slow", "copy"):
        found = [row["prompt_id"] for row in rows(tmp_path, key, "data")]
        assert sorted(found) == sorted(name for name in every if not fails(name)), key
    assert sorted(row["row_id"] for row in rows(tmp_path, "slow", "errors")) == sorted(filter(fails, every))
    again = {name for name, times in Counter(asked.read_text().split()).items() if times > 1}
    assert not {f"{int(name.split('-')[0]):06d}" for name in again} & finished
