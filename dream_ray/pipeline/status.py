"""Where a run is, while it goes on and after: what `dream-ray status` shows.

Contract: `read_status` reads what the driver left in the run directory (the attempt's status, the lease, manifests, payments)
and starts nothing: no Ray, no lock, no write. Whether the driver lives is told by the clocks of both machines here, which is
good enough to look at; who wants to take over watches the lease itself (lease.py).
"""

import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from dream_ray import files
from dream_ray.config import ConfigError
from dream_ray.pipeline.lease import TIMES, Lease, parse, read_lease
from dream_ray.pipeline.payments import ledger_uri, paid_before
from dream_ray.pipeline.store import RunStore
from dream_ray.progress import Attempt, Progress, State, read_attempt, read_training


@dataclass(frozen=True)
class StageStatus:
    """A stage that is finished. `cost_usd` is the price of its rows' tokens, `seconds` what its last attempt took."""

    key: str
    rows: int
    failed: int
    failures: Mapping[str, int]
    cost_usd: float
    seconds: float


@dataclass(frozen=True)
class Status:
    """`verdict` says in a sentence how the run stands. `under_way` holds a progress for each thing that tells one.

    `heartbeat_age_s` is by the clocks of both machines, None where nobody holds the directory. `paid_usd` is what all
    attempts paid for teacher and judge.
    """

    run_dir: str
    verdict: str
    attempt: Attempt | None
    holder: Lease | None
    heartbeat_age_s: float | None
    finished: tuple[StageStatus, ...]
    under_way: tuple[Progress, ...]
    paid_usd: float


def read_status(run_dir: str, now: datetime.datetime | None = None) -> Status:
    """The status of a run directory. Raises ConfigError where it is none."""
    store = RunStore(run_dir)
    if not files.exists(files.join(store.uri, "config.yaml")):
        raise ConfigError(
            f"{run_dir} is no run directory: it holds no config.yaml. Name the folder that `dream-ray run` writes, which is "
            "its --run-dir, or runs/<name> unless that was set."
        )
    now = now or datetime.datetime.now(datetime.UTC)
    attempt, holder = read_attempt(store.uri), parse(read_lease(store.uri))
    age = None if holder is None else (now - datetime.datetime.fromisoformat(holder.beat_at)).total_seconds()
    finished = [manifest for ref in store.history() or () if (manifest := store.manifest(ref)) is not None]
    return Status(
        run_dir=store.uri,
        verdict=verdict(attempt, holder, age),
        attempt=attempt,
        holder=holder,
        heartbeat_age_s=age,
        finished=tuple(
            StageStatus(item.stage, item.rows_out, item.failed, item.failures, item.cost_usd, item.seconds)
            for item in finished
        ),
        under_way=tuple(_under_way(attempt)),
        paid_usd=sum(paid_before(ledger_uri(store.uri)).values()),
    )


def _under_way(attempt: Attempt | None) -> list[Progress]:
    """What the stages under way, or those that were when the attempt ended, say of themselves."""
    if attempt is None:
        return []
    trainings = [read_training(uri) for uri in attempt.stages.values()]
    return [item for item in (attempt.progress if attempt.stages else None, *trainings) if item is not None]


def verdict(attempt: Attempt | None, holder: Lease | None, age_s: float | None) -> str:
    """How a run stands, in a sentence."""
    if holder is not None and age_s is not None:
        who = f"process {holder.pid} on {holder.host}"
        if abs(age_s) < TIMES.limit:
            return f"running: {who}, since {holder.since}"
        return (
            f"no sign of life for {age_s:.0f} s from {who}: killed, or cut off from its storage (or the clocks of two "
            "machines differ). The same command goes on"
        )
    if attempt is None:
        return "not started yet"
    if attempt.state is State.RUNNING:
        return "ended without a word. The same command goes on"
    return f"{attempt.state}: {attempt.message}" if attempt.message else str(attempt.state)


def as_json(status: Status) -> dict[str, Any]:
    """The status as plain data; `seconds_left` beside each progress."""
    tree = asdict(status)
    for entry, progress in zip(tree["under_way"], status.under_way, strict=True):
        entry["seconds_left"] = progress.seconds_left
    return tree


def render_status(status: Status) -> Group:
    """The status for the terminal."""
    stages = Table(title="finished stages", title_justify="left")
    for column in ("stage", "rows", "failed", "reasons", "cost", "seconds"):
        stages.add_column(column, justify="left" if column in ("stage", "reasons") else "right")
    for item in status.finished:
        cost, seconds = f"${item.cost_usd:.2f}", f"{item.seconds:.0f}"
        stages.add_row(item.key, str(item.rows), str(item.failed), _reasons(item.failures), cost, seconds)
    parts: list[Table | Text] = [Text(f"{status.run_dir}: {status.verdict}")]
    if status.attempt is not None:
        attempt = status.attempt
        parts.append(Text(f"attempt {attempt.number} of {attempt.run}, started {attempt.started_at}"))
    if status.holder is not None:
        parts.append(Text(f"last heartbeat: {status.holder.beat_at}, {status.heartbeat_age_s:.0f} s ago"))
    parts.append(stages)
    if status.attempt is not None and status.attempt.stages:
        parts.append(Text(f"under way: {', '.join(status.attempt.stages)}"))
        parts += [Text(f"  {_line(progress)}") for progress in status.under_way]
    parts.append(Text(f"paid for teacher and judge, over all attempts: ${status.paid_usd:.2f}"))
    return Group(*parts)


def _line(progress: Progress) -> str:
    failed = f", {sum(progress.failures.values())} failed: {_reasons(progress.failures)}" if progress.failures else ""
    return (
        f"{progress.name}: {progress.done} of {progress.expected} {progress.unit}, {progress.per_second:.2f} "
        f"{progress.unit}/s, {progress.to_go}{failed} (at {progress.at})"
    )


def _reasons(failures: Mapping[str, int]) -> str:
    return ", ".join(
        f"{reason} x{count}" for reason, count in sorted(failures.items(), key=lambda item: (-item[1], item[0]))
    )
