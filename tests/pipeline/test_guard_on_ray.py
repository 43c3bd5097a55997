"""Poison on a real Ray: a row whose actor dies of it each time is set aside, and the stage goes on to its end."""

import asyncio
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.data

from dream_ray.config import Config
from dream_ray.engine.engine import EngineDied
from dream_ray.outcomes import outcome_table
from dream_ray.pipeline.data_stages import KeepRoute, labelled
from dream_ray.pipeline.guard import KILLED, Guarded
from dream_ray.pipeline.parts import StageFailed, Target, WorkItem, run_pass
from dream_ray.pipeline.run import Outcome, Run
from dream_ray.records import Disentanglement, ErrorRow
from tests.pipeline.resumed_driver import CONFIG, PARTS, ids

pytestmark = pytest.mark.slow

CRASHES, BREAKS = "03-1", "07-0"
"""A row that ends its process from within, and one that breaks its engine."""


class Fragile:
    """A teacher that some rows are too much for."""

    async def __call__(self, block: pa.Table) -> pa.Table:
        found = block["id"].to_pylist()
        await asyncio.sleep(0.05)
        if CRASHES in found:
            os.kill(os.getpid(), signal.SIGKILL)
        if BREAKS in found:
            raise EngineDied("an illegal memory access")
        return outcome_table(Disentanglement, [Disentanglement(name, (), 0, 0, 1, 1, 0) for name in found])

    @staticmethod
    def set_aside(row: pa.Table, reason: str, detail: str, attempts: int) -> pa.Table:
        name = row["id"].to_pylist()[0]
        return outcome_table(Disentanglement, [ErrorRow("fragile", name, reason, detail, attempts)])


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_rows_that_kill_are_set_aside_and_the_stage_ends(tmp_path: Path) -> None:
    run = Run(Config.model_validate(CONFIG), str(tmp_path / "run"))
    plan = run.plans.plan("fragile", 1, {}, {})

    def read(job: str, part: str) -> Iterable[pa.Table]:
        yield labelled(pa.table({"id": ids(int(part))}), job, part)

    def stages(dataset: ray.data.Dataset) -> ray.data.Dataset:
        how: dict[str, Any] = {"max_concurrent_calls_per_actor": 4}
        return dataset.map_batches(
            Guarded,
            fn_constructor_args=(run.store.in_flight_uri, KeepRoute, Fragile),
            batch_format="pyarrow",
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=1, **how),
        )

    def work() -> Mapping[str, Outcome]:
        items = [WorkItem("fragile", f"{part:06d}", 3) for part in range(PARTS)]
        target = Target(plan.ref, Disentanglement, "fragile", "record", "fragile")
        return {"fragile": Outcome(run_pass("fragile", items, read, stages, [target], 0.05)["fragile"])}

    (done,) = run.carry_out([plan], work)
    assert (done.manifest.rows_out, done.manifest.failures) == (3 * PARTS - 2, {KILLED: 2})
    errors = [row for path in Path(plan.ref.errors_uri).glob("*") for row in pq.read_table(path).to_pylist()]
    details = {row["row_id"]: row["detail"] for row in errors}
    assert details.keys() == {CRASHES, BREAKS}
    assert "without a word" in details[CRASHES]
    assert "an illegal memory access" in details[BREAKS]
    written = [
        name for path in Path(plan.ref.data_uri).glob("*") for name in pq.read_table(path)["prompt_id"].to_pylist()
    ]
    assert sorted([*written, CRASHES, BREAKS]) == sorted(name for part in range(PARTS) for name in ids(part))
    assert not Path(run.store.in_flight_uri).exists()


class Hangs:
    """Works on nothing for ever."""

    async def __call__(self, block: pa.Table) -> pa.Table:
        await asyncio.sleep(3600)
        return block


def test_a_pass_that_hangs_ends_by_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no deadline of its own ends: Ray Data's, shortened."""
    monkeypatch.setattr(ray.data.DataContext.get_current(), "execution_no_progress_timeout_s", 5.0)
    run = Run(Config.model_validate(CONFIG), str(tmp_path / "run"))
    target = Target(run.plans.plan("hangs", 1, {}, {}).ref, Disentanglement, "hangs", "record", "hangs")

    def read(job: str, part: str) -> Iterable[pa.Table]:
        yield labelled(pa.table({"id": ids(int(part))}), job, part)

    def stages(dataset: ray.data.Dataset) -> ray.data.Dataset:
        pool = ray.data.ActorPoolStrategy(size=1)
        return dataset.map_batches(Hangs, batch_format="pyarrow", batch_size=None, compute=pool)

    with pytest.raises(StageFailed, match="hangs: nothing has gone forward for 5 s"):
        run_pass("hangs", [WorkItem("hangs", "000000", 3)], read, stages, [target], 0.05)
