"""What the driver, its passes and the scorer bear: rollouts of a 7B model on GPU workers that only sleep.

    python benchmarks/simulation.py [--prompts 1000000] [--k 8] [--workers 64] [--slowdown 1] [--part-rows 32] …

Contract: everything is real, ingest, disentangling, Ray Data's passes, the guarded sampler actors, the scorer on Ray Serve
with the rules judge, and the pairs, but for the engine and its processor: in their place stands `SimulatedEngine`, which
waits as long as the model would take. `--slowdown 20` makes the simulated GPUs twenty times slower, for a machine that has not
the CPUs of the cluster that it plays: the engines' seconds are then a twentieth of the printed ones, CPU seconds a row are
what they are. Prints what the driver held while it went on, the object store's peak, CPU time a row by kind of process,
how idle the GPUs were, and which process would be the first to have too much to do at full speed. Linux only.
"""

import argparse
import asyncio
import heapq
import json
import logging
import os
import random
import tempfile
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import psutil
import ray
from ray.cluster_utils import Cluster

from dream_ray.config import Config, ImageConfig, RolloutConfig, StudentConfig
from dream_ray.engine.engine import Query
from dream_ray.pipeline import sampling_stages
from dream_ray.pipeline.cluster import connected, scorer
from dream_ray.pipeline.data_stages import disentangle, ingest
from dream_ray.pipeline.learning_stages import pair
from dream_ray.pipeline.plans import rollout_job
from dream_ray.pipeline.run import Done, Run
from dream_ray.rollout.requests import SampleRequest
from dream_ray.rollout.sampler import Sampler
from dream_ray.stopwatch import GpuWatch, Stopwatch
from dream_ray.taxonomy import Category, Source
from dream_ray.train.local_student import build_local_student
from dream_ray.train.policy import Policy

ROOT = Path(__file__).parent.parent

TOKENS_PER_S = 3363.0
"""Generated tokens a second of a full engine: vLLM with DeepSeek-R1-Distill-Qwen-7B in bfloat16 on one A100 80GB, from the
table in https://www.morphllm.com/vllm-benchmarks (one H100 is given there with 12,500 for Llama 3.1 8B)."""
TOKENS_PER_S_ALONE = 75.0
"""Of one answer that has the engine for itself: Llama 3.1 8B in bfloat16 with vLLM on an A100, from
https://johnmusgrave.com/p/vllm-throughput-latency-sweep-on, which finds hardly any slowing until 8 share it."""
SLOTS = 256
"""Answers that an engine works on at once unless told otherwise: vLLM's own max_num_seqs on such a GPU."""

WORDS = "garden river market window kettle bicycle lantern meadow harbour pencil orchard winter".split()
SAID = (
    "I can't help with that, because it could harm someone. If you are worried about it, talk to somebody you trust.",
    "Sure, here is what to do. First look at the {}, then take the {} and go on step by step until it is done.",
    "That is a question about the {} and the {}. What it comes down to is care, time and a little patience.",
)
"""What answers begin with, so that the judge prefers some to others."""

SINGLE = ("driver", "gcs", "Serve controller")
"""Kinds of which a cluster has one, however many nodes it has."""
PER_NODE = ("raylet", "Serve proxy")
GPUS_PER_NODE = 8


class SimulatedEngine:
    """Answers that take as long as a 7B model's: `slots` at once share the engine's speed evenly, the others queue."""

    def __init__(self, slowdown: float, slots: int, worked: Stopwatch):
        self._slowdown, self._slots, self._worked = slowdown, slots, worked
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._running: list[tuple[float, int, asyncio.Future[None]]] = []
        """By the tokens that each answer will have seen generated beside it when it is done."""
        self._generated = 0.0
        self._asked = 0
        self._changed = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self.slot_seconds = 0.0

    async def generate(self, tokens: int) -> None:
        """Return when an answer of so many tokens would be there."""
        if self._loop is None:
            self._loop = asyncio.create_task(self._run())
        done = asyncio.get_running_loop().create_future()
        self._queue.append((tokens, done))
        self._changed.set()
        await done

    async def _run(self) -> None:
        before = time.monotonic()
        while True:
            while self._queue and len(self._running) < self._slots:
                tokens, done = self._queue.popleft()
                self._asked += 1
                heapq.heappush(self._running, (self._generated + tokens, self._asked, done))
            self._worked.run(bool(self._running))
            each = min(TOKENS_PER_S_ALONE, TOKENS_PER_S / max(1, len(self._running))) / self._slowdown
            wait = (self._running[0][0] - self._generated) / each if self._running else None
            self._changed.clear()
            with_work = len(self._running)
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                pass
            now = time.monotonic()
            self._generated += each * (now - before) if with_work else 0.0
            self.slot_seconds += with_work * (now - before)
            before = now
            while self._running and self._running[0][0] <= self._generated + 1e-6:
                heapq.heappop(self._running)[2].set_result(None)


class SimulatedSampler(Sampler):
    """The real sampler actor without processor and weights."""

    def __init__(
        self,
        slowdown: float,
        slots: int,
        tokens: int,
        folder: str,
        student: StudentConfig,
        rollout: RolloutConfig,
        lora_rank: int,
        images: ImageConfig,
        gpus: GpuWatch | None = None,
    ):
        """`tokens` is the mean length of answers; the worker leaves word of itself in `folder`."""
        self._images, self._tokens = images, tokens
        self._worked = gpus.watch() if gpus else Stopwatch()
        self._simulated = SimulatedEngine(slowdown, slots, self._worked)
        self._word = Path(folder) / f"{uuid.uuid4().hex}.json"
        self._first: float | None = None

    def _load(self, request: SampleRequest) -> tuple[()]:
        return ()  # the prompts are words only

    def _query(self, request: SampleRequest, images: Any) -> Query:
        params: Any = SimpleNamespace(n=request.n, seed=request.seed)
        return Query("", False, images, (), params, request.max_tokens, None, None)

    async def _sample(self, queries: Sequence[Query]) -> list[Any]:
        self._first = self._first or time.monotonic()
        found = await asyncio.gather(*(self._answers(query) for query in queries))
        self._word.write_text(
            json.dumps([time.monotonic() - self._first, self._worked.seconds, self._simulated.slot_seconds])
        )
        return list(found)

    async def _answers(self, query: Query) -> Any:
        drawn = [random.Random(query.params.seed + k) for k in range(query.params.n)]
        texts = [_answer(chance, self._tokens, query.max_tokens) for chance in drawn]
        await asyncio.gather(*(self._simulated.generate(len(text.split())) for text in texts))
        outputs = [
            SimpleNamespace(index=k, text=text, token_ids=text.split(), finish_reason="stop")
            for k, text in enumerate(texts)
        ]
        return SimpleNamespace(prompt_token_ids=range(100), outputs=outputs)


def _answer(chance: random.Random, mean: int, most: int) -> str:
    """A text of a token a word: lengths are spread as real answers' are, by a factor of two or so."""
    length = min(most, max(4, int(mean * chance.lognormvariate(-0.18, 0.6))))
    words = chance.choice(SAID).format(*chance.choices(WORDS, k=2)).split()
    return " ".join((words + chance.choices(WORDS, k=length))[:length])


def write_source(path: Path, rows: int) -> None:
    """`rows` prompts of some 60 words; every other one brings an observation, so that no teacher is asked."""
    chance = random.Random(0)
    source, category = Source.TEXT_INSTRUCTION.value, Category.ILLEGAL_ACTIVITIES.value
    seen = {"content": "asks how a lock is opened", "source": source, "category": category}
    with path.open("w") as file:
        for number in range(rows):
            text = f"What has the {' '.join(chance.choices(WORDS, k=60))} to do with number {number}?"
            risky = number % 2 == 1
            row = {"id": str(number), "turns": [{"text": text}], "risk": "risky" if risky else "benign"}
            file.write(json.dumps(row | {"observations": [seen] if risky else []}) + "\n")


class Monitor(logging.Handler):
    """Watches this process and all that it started, until it is closed. As a log handler it sees the passes' progress."""

    def __init__(self) -> None:
        super().__init__()
        self.curve: list[tuple[int, float, float]] = []
        """Rows done, MiB and CPU seconds of the driver, at each line of progress."""
        self.peak_mib = self.store_peak_mib = 0.0
        self._kinds: dict[int, str] = {}
        self._cpu: dict[int, float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Note where the driver stands at a line of progress."""
        if progress := getattr(record, "progress", None):
            driver = psutil.Process()
            self.curve.append((progress.done, driver.memory_info().rss / 2**20, sum(driver.cpu_times()[:2])))

    def cpu(self) -> dict[int, float]:
        """CPU seconds so far of every process that was seen."""
        self._look()
        return dict(self._cpu)

    def kind(self, pid: int) -> str:
        """What a process is."""
        return self._kinds.get(pid, "read and write tasks")

    def start(self) -> None:
        """Begin to watch; Ray runs."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._end.set()
        self._thread.join()
        super().close()

    def _watch(self) -> None:
        from ray._private.internal_api import get_memory_info_reply, get_state_from_address

        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        while not self._end.wait(2.0):
            self._look()
            self.peak_mib = max(self.peak_mib, psutil.Process().memory_info().rss / 2**20)
            used = get_memory_info_reply(state).store_stats.object_store_bytes_used / 2**20
            self.store_peak_mib = max(self.store_peak_mib, used)

    def _look(self) -> None:
        driver = psutil.Process()
        for process in (driver, *driver.children(recursive=True)):
            try:
                if kind := "driver" if process.pid == driver.pid else _kind(" ".join(process.cmdline())):
                    self._kinds[process.pid] = kind
                self._cpu[process.pid] = sum(process.cpu_times()[:2])
            except psutil.Error:
                continue


def _kind(title: str) -> str | None:
    """What a process is, by its title; None for Ray's workers that have no actor in them."""
    kinds = {
        "Guarded": "simulated GPU workers",
        "JudgeActor": "scorer's clients",
        "ServeReplica": "scorer's replicas",
        "Proxy": "Serve proxy",
        "ServeController": "Serve controller",
        "raylet/raylet": "raylet",
        "gcs_server": "gcs",
        "GpuBook": "book of GPU seconds",
    }
    other = None if title.startswith("ray::") else "agents"
    return next((kind for word, kind in kinds.items() if word in title), other)


@contextmanager
def cluster_of(config: Config, gpus: int, store_gib: float) -> Iterator[None]:
    """A Ray on this machine that believes it has GPUs, joined as a submitted job joins its cluster."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": config.cluster.local_num_cpus,
            "num_gpus": gpus,
            "object_store_memory": int(store_gib * 2**30),
            "include_dashboard": False,
            "dashboard_port": 0,
        },
    )
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        with connected(config):
            yield
    finally:
        del os.environ["RAY_ADDRESS"]
        cluster.shutdown()


def simulate(run: Run, monitor: Monitor, slowdown: float, slots: int, tokens: int, words: Path) -> Done:
    """All stages of a round's data, with a table of the one that samples; its finished stage."""
    policy = Policy("base", run.config.student.model, None)
    _stage("ingest", monitor, lambda: ingest(run))
    prompts = run.history[-1]
    _stage("disentangle", monitor, lambda: disentangle(run, prompts))
    observed = run.history[-1]
    job = replace(rollout_job(run.config, 1, policy, prompts.ref), trained=None)
    with scorer(run) as url:
        url()
        before = monitor.cpu()
        monitor.curve.clear()
        with patch.object(sampling_stages, "Sampler", partial(SimulatedSampler, slowdown, slots, tokens, str(words))):
            sampled = sampling_stages.sample(run, [job], prompts, observed, url)[job.key]
        after = monitor.cpu()
    _print_sampling(sampled.rollouts, monitor, before, after, slowdown, run.config)
    if run.config.rollout.k > 1:
        _stage("pair", monitor, lambda: pair(run, 1, observed, sampled.rollouts, sampled.judgements))
    return sampled.rollouts


def _stage(name: str, monitor: Monitor, work: Any) -> None:
    """Carry out a stage and say what it took of the driver."""
    before = time.monotonic(), sum(psutil.Process().cpu_times()[:2])
    done: Done = work()
    seconds, cpu = time.monotonic() - before[0], sum(psutil.Process().cpu_times()[:2]) - before[1]
    rows = done.manifest.rows_out
    rss = psutil.Process().memory_info().rss / 2**20
    print(
        f"{name}: {rows:,} rows, {done.manifest.failed} failed, {seconds:.0f} s, driver {1000 * cpu / rows:.2f} ms CPU a row "
        f"and {rss:.0f} MiB",
        flush=True,
    )


def _print_sampling(
    done: Done, monitor: Monitor, before: dict[int, float], after: dict[int, float], slowdown: float, config: Config
) -> None:
    manifest = done.manifest
    rows, seconds = manifest.rows_out, manifest.seconds
    workers = config.rollout.engines
    wanted = workers * TOKENS_PER_S / (manifest.completion_tokens / rows)
    parts = -(-rows // (config.rollout.k * config.part_rows))
    print(f"\nsampled and judged {rows:,} answers in {parts:,} parts, {manifest.failed} failed, in {seconds:.0f} s:")
    print(
        f"  {rows / seconds:.0f} answers/s; {workers} such GPUs give {wanted:.0f}/s, {wanted / slowdown:.0f}/s so slowed"
    )
    (first, *_, last) = [point for point in monitor.curve if point[0]]
    grown, used = last[1] - first[1], last[2] - first[2]
    through = max(1.0, (last[0] - first[0]) / rows * parts)
    print(
        f"  driver: {1024 * grown / through:.1f} KiB kept and {1000 * used / through:.1f} ms CPU a part after the first "
        f"{first[0]:,} answers"
    )
    print("  driver, by answers done:")
    for share in (0.1, 0.25, 0.5, 0.75, 1.0):
        near = min(monitor.curve, key=lambda point: abs(point[0] - share * rows))
        print(f"    {near[0]:>12,}   {near[1]:6.0f} MiB   {near[2] - monitor.curve[0][2]:7.1f} s CPU")
    print(
        f"  driver at its peak: {monitor.peak_mib:.0f} MiB; object store at its peak: {monitor.store_peak_mib:.0f} MiB"
    )
    print(f"  CPU a row, and what it means for {wanted:.0f} answers/s:")
    load: dict[str, float] = {}
    spent: dict[str, list[float]] = defaultdict(list)
    for pid, cpu in after.items():
        if cpu > before.get(pid, 0.0):
            spent[monitor.kind(pid)].append(cpu - before.get(pid, 0.0))
    for kind, found in sorted(spent.items(), key=lambda item: -sum(item[1])):
        cost = sum(found) / rows
        cores = cost * wanted
        if kind in SINGLE or kind in PER_NODE:
            load[kind] = cores if kind in SINGLE else cores / max(1, workers / GPUS_PER_NODE)
        print(f"    {kind:24} {len(found):4} here   {1000 * cost:8.3f} ms   {cores:7.2f} cores")
    busiest = max(load, key=lambda kind: load[kind])
    print(f"  first to have too much to do: the {busiest}, {load[busiest]:.0%} of a core of its own at full speed")


def _print_gpus(done: Done, slots: int, words: Path) -> None:
    manifest = done.manifest
    told = [json.loads(path.read_text()) for path in words.iterdir()]
    span, worked, full = (sum(column) for column in zip(*told, strict=True))
    print(
        f"\nGPUs: {manifest.gpu_held_s:.0f} s held, {manifest.gpu_idle_s / manifest.gpu_held_s:.1%} idle, start and end of the "
        f"pass included; between a worker's first question and its last answer {1 - worked / span:.1%} idle, and its "
        f"{slots} places were {full / span / slots:.0%} full"
    )


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--slowdown", type=float, default=1.0)
    parser.add_argument("--slots", type=int, default=SLOTS, help="answers that an engine works on at once")
    parser.add_argument("--part-rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=100, help="mean length of an answer")
    parser.add_argument("--replicas", type=int, default=32, help="of the scorer")
    parser.add_argument("--task-cpus", type=int, default=16, help="read and write tasks at once")
    parser.add_argument("--store-gib", type=float, default=4.0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_source(folder / "prompts.jsonl", options.prompts)
        (folder / "workers").mkdir()
        config = Config.model_validate(
            {
                "name": "simulation",
                "rounds": 1,
                "part_rows": options.part_rows,
                # A real one, as its tokenizer measures prompts.
                "student": {"model": str(build_local_student(ROOT / "build" / "student"))},
                "sources": [{"path": str(folder / "prompts.jsonl"), "observations": "use"}],
                "rollout": {"k": options.k, "engines": options.workers, "gpus_per_engine": 1},
                "judge": {"replicas": options.replicas},
                "cluster": {"local_num_cpus": options.workers + 2 * options.replicas + options.task_cpus},
            }
        )
        monitor = Monitor()
        logging.getLogger("dream_ray").addHandler(monitor)
        with cluster_of(config, options.workers, options.store_gib):
            monitor.start()
            try:
                rollouts = simulate(
                    Run(config, str(folder / "run")),
                    monitor,
                    options.slowdown,
                    options.slots,
                    options.tokens,
                    folder / "workers",
                )
            finally:
                monitor.close()
        _print_gpus(rollouts, options.slots, folder / "workers")


if __name__ == "__main__":
    main()
