"""A driver to be killed and started again: one stage of slow rows in twenty parts, on a real Ray.

    python -m tests.pipeline.resumed_driver FOLDER …

Each row that is worked on leaves a line in FOLDER/asked.txt. The stage writes two kinds of rows, as sampling and judging do,
and every seventh row fails. It stops half way until there is a file FOLDER/go-on: who strikes it finds it at work, on a machine
of any speed.
"""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import ray
import ray.data

from dream_ray.config import Config
from dream_ray.outcomes import outcome_table
from dream_ray.pipeline.data_stages import labelled, route_of
from dream_ray.pipeline.parts import Target, WorkItem, run_pass
from dream_ray.pipeline.run import Outcome, Run
from dream_ray.records import Disentanglement, ErrorRow

PARTS, ROWS = 20, 3
CONFIG = {"name": "resumed", "student": {"model": "none"}, "sources": [{"path": "none.jsonl"}]}


def ids(part: int) -> list[str]:
    """The rows of a part."""
    return [f"{part:02d}-{row}" for row in range(ROWS)]


def fails(row_id: str) -> bool:
    part, row = map(int, row_id.split("-"))
    return (part * ROWS + row) % 7 == 0


class Slow:
    """Says in a file that a row was asked, and begins the second half of the parts when it may."""

    def __init__(self, log: str):
        self._log = log
        self._go_on = Path(log).with_name("go-on")

    def __call__(self, block: pa.Table) -> pa.Table:
        outcomes: list[Disentanglement | ErrorRow] = []
        for row in block.to_pylist():
            while row["id"] >= ids(PARTS // 2)[0] and not self._go_on.exists():
                time.sleep(0.02)
            with open(self._log, "a") as stream:
                stream.write(row["id"] + "\n")
            bad = ErrorRow("slow", row["id"], "no_list", "", 1, "0" * 12, 5, 0, 0)
            outcomes.append(bad if fails(row["id"]) else Disentanglement(row["id"], (), 0, 0, 10, 1, 0))
        table = labelled(outcome_table(Disentanglement, outcomes), *route_of(block))
        return table.append_column("copied", table["record"])


def carry_out(run_dir: Path, asked: Path) -> None:
    """Carry out the stage, or go on with it, on the Ray that is there; `asked` is the file of the rows worked on, and beside it
    is to be the file "go-on"."""
    run = Run(Config.model_validate(CONFIG), str(run_dir))
    plans = [run.plans.plan(key, 1, {}, {}) for key in ("slow", "copy")]

    def read(job: str, part: str) -> Iterable[pa.Table]:
        yield labelled(pa.table({"id": ids(int(part))}), job, part)

    def stages(dataset: ray.data.Dataset) -> ray.data.Dataset:
        return dataset.map_batches(
            Slow,
            fn_constructor_args=(str(asked),),
            batch_format="pyarrow",
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=1),
        )

    def work() -> Mapping[str, Outcome]:
        items = [WorkItem("job", f"{part:06d}", ROWS) for part in range(PARTS)]
        targets = [
            Target(plans[0].ref, Disentanglement, "job", "record", "slow"),
            Target(plans[1].ref, Disentanglement, "job", "copied", "copy"),
        ]
        tallies = run_pass("slow", items, read, stages, targets, 0.5)
        return {key: Outcome(tally) for key, tally in tallies.items()}

    run.carry_out(plans, work)


def main(folders: Sequence[Path]) -> None:
    """The driver, of a run in each folder."""
    ray.init(address="local", num_cpus=3, include_dashboard=False, logging_level="ERROR")
    for folder in folders:
        carry_out(folder / "run", folder / "asked.txt")
    ray.shutdown()


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
