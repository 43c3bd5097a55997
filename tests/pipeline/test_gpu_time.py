"""GPU seconds: what engines tell, which stage it belongs to, and where it ends up."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray

from dream_ray.config import Config
from dream_ray.feedback.scorer import metrics_urls
from dream_ray.pipeline import gpu_time, measures
from dream_ray.pipeline.gpu_time import GpuBook, GpuSeconds, GpuTeller, engines_hold_gpus
from dream_ray.pipeline.ledger import Ledger
from dream_ray.pipeline.parts import Tally
from dream_ray.pipeline.run import Outcome, Run


def test_seconds_belong_to_the_stage_under_way() -> None:
    book = GpuBook()
    book.tell("sampler", 2.0, 5.0, 1.0)  # before any stage
    book.begin("round-1/rollout")
    book.tell("sampler", 2.0, 15.0, 9.0)
    book.tell("judge", 1.0, 10.0, 10.0)
    book.tell("sampler", 2.0, 16.0, 10.0)
    assert book.end() == GpuSeconds(held=2 * 11 + 10, idle=2 * 2)
    book.begin("round-1/dpo")
    book.tell("judge", 1.0, 40.0, 10.0)  # it keeps its GPU and has nothing to do
    assert book.end() == GpuSeconds(held=30.0, idle=30.0)
    book.begin("sft")
    assert book.end() == gpu_time.NO_GPU


def test_a_clock_that_runs_a_hair_ahead_gives_no_negative_idleness() -> None:
    book = GpuBook()
    book.begin("rollout")
    book.tell("sampler", 1.0, 2.0, 2.001)
    assert book.end() == GpuSeconds(held=2.0, idle=0.0)


def config(**sections: object) -> Config:
    return Config.model_validate(
        {"name": "test", "student": {"model": "student"}, "sources": [{"path": "prompts.jsonl"}], **sections}
    )


def test_the_book_is_kept_only_where_an_engine_has_a_gpu(tmp_path: Path) -> None:
    assert not engines_hold_gpus(config())
    assert not engines_hold_gpus(config(judge={"chat": {"backend": "vllm", "model": "judge", "gpus": 0}}))
    assert engines_hold_gpus(config(judge={"chat": {"backend": "vllm", "model": "judge"}}))
    assert engines_hold_gpus(config(teacher={"chat": {"backend": "vllm", "model": "teacher"}}))
    assert engines_hold_gpus(config(rollout={"gpus_per_engine": 2}))
    laptop = Run(config(), str(tmp_path))
    assert laptop.gpu_book is laptop.gpus is laptop.services.gpus is None


@pytest.fixture
def two_gpus() -> Iterator[None]:
    """A Ray that believes it has GPUs and passes metrics on soon."""
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=2,
        include_dashboard=False,
        _system_config={"metrics_report_interval_ms": 500},
    )
    try:
        yield
    finally:
        ray.shutdown()


@ray.remote(num_cpus=0)
class Engine:
    """Holds GPUs as a sampler does, and works when it is told to."""

    def __init__(self, teller: GpuTeller):
        self.worked = teller.watch()

    def work(self, seconds: float) -> None:
        """Be busy."""
        self.worked.run(True)
        time.sleep(seconds)
        self.worked.run(False)


@pytest.mark.slow
def test_every_metric_of_a_run_is_at_rays_endpoint(two_gpus: None, tmp_path: Path) -> None:
    """One Ray for all of them: what the manifest says of GPUs, and what Prometheus would read."""
    run = Run(config(rollout={"gpus_per_engine": 2}), str(tmp_path))
    assert run.gpus is not None
    plan = run.plans.plan("round-1/rollout", 1, {}, {})

    def work() -> dict[str, Outcome]:
        engines = [Engine.options(num_gpus=gpus).remote(run.gpus) for gpus in (2, 0)]  # type: ignore[attr-defined]
        ray.get([engine.work.remote(2.0) for engine in engines])
        time.sleep(2.5)
        measures.count_rows("round-1/rollout", 30, {"timeout": 2})
        measures.count_tokens("round-1/rollout", 900, 300)
        ledger = ray.remote(Ledger).remote(str(tmp_path / "ledger"), None)
        ray.get(ledger.begin.remote("round-1/judge"))
        ray.get(ledger.add.remote(0.25))
        found: dict[tuple[str, ...], float] = {}
        deadline = time.monotonic() + 60
        while not found.keys() >= EXPECTED:
            assert time.monotonic() < deadline, EXPECTED - found.keys()
            measures.show_waiting("sampling round-1", 64)  # Ray shows a gauge until it is read, then what is set next
            time.sleep(0.5)
            found |= read_metrics()
        for key, least in EXPECTED_VALUES.items():
            assert found[key] == least
        return {"round-1/rollout": Outcome(Tally(rows_out=30))}

    (done,) = run.carry_out([plan], work)
    manifest = run.store.manifest(plan.ref)
    assert manifest == done.manifest
    # The process with two GPUs was told of every TELL_EVERY_S; the one without does not count.
    assert manifest.gpu_held_s >= 2 * 2 * gpu_time.TELL_EVERY_S - 1
    assert 2 * 1.0 <= manifest.gpu_held_s - manifest.gpu_idle_s <= 2 * 2.5
    assert manifest.gpu_idle_s > 0


STAGE = 'stage="round-1/rollout"'
EXPECTED_VALUES = {
    (measures.ROWS, 'outcome="done"', STAGE): 30.0,
    (measures.ROWS, 'outcome="timeout"', STAGE): 2.0,
    (measures.TOKENS, 'kind="prompt"', STAGE): 900.0,
    (measures.TOKENS, 'kind="completion"', STAGE): 300.0,
    (measures.WAITING, 'pass="sampling round-1"'): 64.0,
    (measures.PAID, 'stage="round-1/judge"'): 0.25,
}
EXPECTED = EXPECTED_VALUES.keys() | {
    (measures.GPU_SECONDS, STAGE, 'state="idle"'),
    (measures.GPU_SECONDS, STAGE, 'state="worked"'),
}
assert {key[0] for key in EXPECTED} == set(measures.NAMES)


def read_metrics() -> dict[tuple[str, ...], float]:
    """Our metrics at the nodes' endpoints, by name and labels of ours, in the order of the alphabet."""
    found: dict[tuple[str, ...], float] = {}
    for url in metrics_urls():
        for line in httpx.get(url, timeout=60, trust_env=False).text.splitlines():
            name, _, rest = line.partition("{")
            if name.removeprefix("ray_") in measures.NAMES:
                labels, value = rest.rsplit("} ", 1)
                own = [label for label in labels.split(",") if label.split("=")[0] in LABELS]
                key = (name.removeprefix("ray_"), *sorted(own))
                found[key] = found.get(key, 0.0) + float(value)
    return found


LABELS = ("stage", "outcome", "kind", "pass", "state")
