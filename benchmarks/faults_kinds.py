"""The faults of benchmarks/faults.py: what each does to a run that is under way, and what the world does afterwards.

Contract: `Kind.strike` gets a `Scene`, does the fault and says what was struck, None where there was nothing to strike while
the driver lived. `Kind.mend` is what somebody does before the same command is given again: there is room on the disk.
"""

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

OUTAGE_SECONDS = 20.0
"""How long the judge's endpoint is down: two minutes scaled by six, as is the deadline of a question (30 s for 180 s)."""
CLOCK_JUMP_SECONDS = 86400
PORT = 18235
"""Of the judge's endpoint: a fixed one, as a run's results depend on its judge's address."""


class Judge:
    """A judge behind the OpenAI protocol whose answers follow from the question alone; its listener can be away."""

    model = "by-rule"

    def __init__(self) -> None:
        self.up()

    def up(self) -> None:
        """Listen."""
        self._server = ThreadingHTTPServer(("127.0.0.1", PORT), _Answers)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def down(self) -> None:
        """Connections are refused from now on."""
        self._server.shutdown()
        self._server.server_close()


class _Answers(BaseHTTPRequestHandler):
    """Picks one of the values that the asked form allows, by a hash of the question."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        digest = int(hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest(), 16)
        form = body["response_format"]["json_schema"]["schema"]["properties"]
        answer = {name: _pick(value, digest) for name, value in form.items()}
        message = {"role": "assistant", "content": json.dumps(answer)}
        reply = {
            "id": "0", "object": "chat.completion", "created": 0, "model": Judge.model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
        }  # fmt: skip
        content = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Nothing: prompts are no log lines."""


def _pick(form: dict[str, Any], digest: int) -> Any:
    return form["enum"][digest % len(form["enum"])] if "enum" in form else []


class ThreeNodes:
    """A Ray cluster of three nodes on this machine: a head without CPUs and two that do the work."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True})
        for _ in range(2):
            self._cluster.add_node(num_cpus=8)

    @property
    def address(self) -> str:
        """For RAY_ADDRESS."""
        return str(self._cluster.address)

    def kill_one(self, draw: random.Random) -> None:
        """End all processes of one of the two nodes that work."""
        nodes = sorted(self._cluster.worker_nodes, key=lambda node: node.node_id)
        self._cluster.remove_node(draw.choice(nodes), allow_graceful=False)

    def end(self) -> None:
        """End what is left of it."""
        self._cluster.shutdown()


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of its own for the runs, whose filling up harms nobody else; False where none may be mounted."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500m", "tmpfs", str(folder)], capture_output=True)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@dataclass
class Scene:
    """A run under way: its folder, the folder that its processes look into (faults_inside), and the world around it."""

    run: Path
    control: Path
    driver: subprocess.Popen[bytes]
    judge: Judge
    nodes: ThreeNodes | None
    draw: random.Random
    coming_back: list[threading.Timer] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """True once the driver has ended."""
        return self.driver.poll() is not None


@dataclass(frozen=True)
class Kind:
    """A fault. `stages` begin the names of those where there is something to strike; `needs` is what the run is given:
    "nodes", "disk" or "engine" (a process of its own for the engine)."""

    name: str
    stages: tuple[str, ...]
    strike: Callable[[Scene], str | None]
    mend: Callable[[Scene], None] = lambda scene: None
    needs: str = ""
    ends_driver: bool = False


def _signal_driver(number: signal.Signals) -> Callable[[Scene], str | None]:
    def strike(scene: Scene) -> str | None:
        if scene.is_over:
            return None
        scene.driver.send_signal(number)
        return f"pid {scene.driver.pid}"

    return strike


def _kill(name: str) -> Callable[[Scene], str | None]:
    """SIGKILL to one of the run's processes with this name, as soon as there is one."""

    def strike(scene: Scene) -> str | None:
        while not scene.is_over:
            if found := _processes(scene.driver.pid, name):
                victim = scene.draw.choice(found)
                victim.kill()
                return f"pid {victim.pid}"
            time.sleep(0.1)
        return None

    return strike


def _processes(driver: int, name: str) -> list[psutil.Process]:
    """The driver's processes whose command line has the name in it."""
    found = []
    try:
        started = psutil.Process(driver).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    for process in started:
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _kill_node(scene: Scene) -> str | None:
    assert scene.nodes is not None
    if scene.is_over:
        return None
    scene.nodes.kill_one(scene.draw)
    return "node"


def _judge_away(scene: Scene) -> str | None:
    scene.judge.down()
    timer = threading.Timer(OUTAGE_SECONDS, scene.judge.up)
    timer.start()
    scene.coming_back.append(timer)
    return "endpoint"


def _wait_for_judge(scene: Scene) -> None:
    for timer in scene.coming_back:
        timer.join()


def _fill_disk(scene: Scene) -> str | None:
    with (scene.run / "ballast").open("wb", buffering=0) as stream:
        for size in (1 << 24, 1 << 12, 1):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return "disk"


def _make_room(scene: Scene) -> None:
    (scene.run / "ballast").unlink(missing_ok=True)


def _tear(scene: Scene) -> str | None:
    """The next write fails half way; waits until one did."""
    (scene.control / "tear").touch()
    while not (scene.control / "torn").exists():
        if scene.is_over:
            return None
        time.sleep(0.1)
    return "write"


def _shift_clock(scene: Scene) -> str | None:
    seconds = scene.draw.choice((-CLOCK_JUMP_SECONDS, CLOCK_JUMP_SECONDS))
    written = scene.control / "clock.new"
    written.write_text(str(seconds))
    os.replace(written, scene.control / "clock")
    return f"{seconds:+d} s"


EVERYWHERE = ("",)
SAMPLING = ("base/answers", "round-1/rollout", "policy-1/answers")
KINDS = (
    Kind("driver killed", EVERYWHERE, _signal_driver(signal.SIGKILL), ends_driver=True),
    Kind("driver told to end (SIGTERM)", EVERYWHERE, _signal_driver(signal.SIGTERM), ends_driver=True),
    Kind("teacher or sampler killed", ("disentangle", "demonstrate", *SAMPLING), _kill("Guarded")),
    Kind("engine's process killed", SAMPLING, _kill("VLLM::EngineCore"), needs="engine"),
    Kind("scorer's replica killed", SAMPLING, _kill("ray::ServeReplica")),
    Kind("Serve's controller killed", SAMPLING, _kill("ray::ServeController")),
    Kind("training worker killed", ("sft", "round-1/dpo"), _kill("ray::RayTrainWorker")),
    Kind("one of three nodes killed", EVERYWHERE, _kill_node, needs="nodes"),
    Kind("judge's endpoint down for 20 s", SAMPLING, _judge_away, _wait_for_judge),
    Kind("disk full", EVERYWHERE, _fill_disk, _make_room, needs="disk"),
    Kind("a write fails half way", EVERYWHERE, _tear),
    Kind("clock jumps by a day", EVERYWHERE, _shift_clock),
)
