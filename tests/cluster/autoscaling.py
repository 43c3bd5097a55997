"""A Ray cluster on this machine that grows and shrinks: a head without CPUs, and workers that Ray's autoscaler starts.

Contract: `autoscaling_cluster` starts Ray's own autoscaler (v2) with Ray's fake provider, whose machines are raylets on this
one, in a folder of its own, with a token as on any cluster, and ends whatever it started. Of what runs beside it, it touches
nothing.
(`ray.cluster_utils.AutoscalingCluster` does the same, but begins and ends with `ray stop`, which ends every Ray on the machine,
and wants a file that the package does not hold.)
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.util import get_node_ip_address

from tests.cluster.machines import Machines
from tests.conftest import REPOSITORY
from tests.leftovers import started_for

MARK = "DREAM_RAY_TEST_CLUSTER"
"""The environment variable by which the cluster's processes are known."""
OBJECT_STORE = 100_000_000
IDLE_SECONDS = 5.0
"""A worker without work for so long goes."""


@dataclass(frozen=True)
class AutoscalingCluster:
    """What runs: the dashboard's address, and the token that it wants."""

    dashboard: str
    token: str
    folder: Path

    @property
    def headers(self) -> dict[str, str]:
        """What a request to the dashboard brings."""
        return {"Authorization": f"Bearer {self.token}"}

    def nodes(self) -> set[str]:
        """Ids of the workers that are alive."""
        reply = httpx.get(f"{self.dashboard}/api/v0/nodes", headers=self.headers, trust_env=False, timeout=30)
        found = reply.raise_for_status().json()["data"]["result"]["result"]
        return {node["node_id"] for node in found if node["state"] == "ALIVE" and not node["is_head_node"]}

    def kill(self, node: str) -> None:
        """End a worker as a lost machine ends: without a word."""
        (raylet,) = [
            process
            for process in processes(self.folder)
            if process.info["name"] == "raylet"
            and process.info["environ"].get("RAY_OVERRIDE_NODE_ID_FOR_TESTING") == node
        ]
        for process in (raylet, *raylet.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # it has ended with its raylet
                process.kill()


def processes(folder: Path) -> list[psutil.Process]:
    """Everything that the cluster in a folder started, with its `name` and `environ` as read once: it may end at any time."""
    running = psutil.process_iter(["name", "environ"])
    return [process for process in running if started_for(process, MARK, folder)]


def wait_until(what: str, true: Callable[[], bool], seconds: float) -> None:
    """Look ten times a second; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"after {seconds:.0f} s not yet: {what}"
        time.sleep(0.1)


@contextmanager
def autoscaling_cluster(resources: dict[str, float], most: int) -> Iterator[AutoscalingCluster]:
    """A head, and up to `most` workers with these resources when somebody asks for them."""
    folder = Path(tempfile.mkdtemp(prefix="dream-ray-test-", dir="/tmp"))  # sockets' paths have to be short
    port, dashboard, of_clients = _free_ports(3)
    token = secrets.token_hex(32)
    gcs = f"{get_node_ip_address()}:{port}"
    (folder / "autoscaling.json").write_text(json.dumps(_config(gcs, resources, most)))
    environment = os.environ | {
        MARK: str(folder),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}",  # the autoscaler loads the provider
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_autoscaler_v2": "1",
    }
    start = [
        "ray", "start", "--head", "--num-cpus=0", f"--port={port}", f"--dashboard-port={dashboard}", "--include-dashboard=true",
        "--dashboard-agent-listen-port=0", f"--ray-client-server-port={of_clients}", f"--object-store-memory={OBJECT_STORE}",
        f"--temp-dir={folder / 'ray'}", f"--autoscaling-config={folder / 'autoscaling.json'}",
    ]  # fmt: skip
    try:
        started = subprocess.run(start, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert started.returncode == 0, started.stdout + started.stderr
        yield AutoscalingCluster(f"http://127.0.0.1:{dashboard}", token, folder)
    finally:
        left = processes(folder)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


def _config(gcs: str, resources: dict[str, float], most: int) -> dict[str, Any]:
    """The autoscaler's configuration; the provider by its class's name, as Ray would look for defaults of its type."""
    none: dict[str, Any] = {"node_config": {}, "min_workers": 0}
    commands = ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands",
                "head_start_ray_commands", "worker_start_ray_commands")  # fmt: skip
    return {
        "cluster_name": "fake",
        "max_workers": most,
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "provider": {
            "type": "external",
            "module": f"{Machines.__module__}.{Machines.__qualname__}",
            "gcs_address": gcs,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            # What such a machine needs no more: Ray is installed, all share one address, and their commands are empty.
            "disable_node_updaters": True,
            "use_node_id_as_ip": True,
            "disable_launch_config_check": True,
        },
        "auth": {},
        # As `ray up` fills in; Ray's defaults for a provider of one's own lack them.
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "upscaling_speed": 1.0,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": none | {"resources": {"CPU": 0}, "max_workers": 0},
            "worker": none | {"resources": resources | {"object_store_memory": OBJECT_STORE}, "max_workers": most},
        },
    } | {command: [] for command in commands}  # fmt: skip


def _free_ports(count: int) -> list[int]:
    listeners = [socket.socket() for _ in range(count)]
    try:
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
