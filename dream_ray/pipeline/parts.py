"""How the stages share their rows: in parts of a few dozen prompts that keep their name from ingest to the pairs.

Ingest cuts the prompts into parts; every later stage turns part N of its inputs into part N of its output. So a join of
prompts, observations, rollouts and judgements is a join of small files with one name (no shuffle over the cluster), a
retried task overwrites its own file instead of doubling rows, and samples of one prompt stay together.

Contract: `run_pass` executes one Ray Data pass over a list of work items, writes each target's records and errors, and
returns what was counted. Items that an earlier attempt finished (marks.py) are counted and not done again. It raises
StageFailed where rows were lost or doubled, or where more rows failed than the config allows. Ray lives here; what happens
to a row is in the functions that are passed in.
"""

import io
import json
import logging
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from ray.data.exceptions import ExecutionTimeoutError

from dream_ray import files
from dream_ray.chat.meter import BUDGET_REACHED
from dream_ray.chat.protocol import ENDPOINT_SILENT
from dream_ray.pipeline import measures
from dream_ray.pipeline.joined import joined_cluster
from dream_ray.pipeline.marks import READERS, Counted, forget, take_over, write_mark
from dream_ray.pipeline.store import StageRef
from dream_ray.progress import Progress
from dream_ray.records import ErrorRow, schema_of

log = logging.getLogger(__name__)

TOKEN_COLUMNS = ("prompt_tokens", "completion_tokens", "cached_tokens")
"""The columns of records and errors that are summed up."""
PROGRESS_SECONDS = 10.0
"""Least time between two progress lines of a pass."""
WRITERS_HERE = 2
"""Processes that write at a time where Ray was started on this machine. A part is written in milliseconds, but each process
takes seconds to start, and 120 MB for as long as the run goes on, as Ray keeps it."""

Stages = Callable[[ray.data.Dataset], ray.data.Dataset]


class StageFailed(RuntimeError):
    """A stage that cannot go on; the message says which, why and what to do."""


class RowsLost(StageFailed):
    """What was counted and what the files hold differ."""


class NotAllAsked(StageFailed):
    """A pass whose questions were no longer asked from some moment on: the stage is not done.

    `finished` holds the tallies of the pass's stages that lack no row all the same, by key.
    """

    def __init__(self, message: str, finished: "dict[str, Tally]"):
        super().__init__(message)
        self.finished = finished


class BudgetReached(NotAllAsked):
    """The budget is spent; nothing failed."""


class EndpointSilent(NotAllAsked):
    """The teacher's or judge's endpoint answers nothing."""


@dataclass(frozen=True)
class WorkItem:
    """One part to do. `job` says for which stage of the pass, `part` names the files, `rows` is how many rows to expect."""

    job: str
    part: str
    rows: int


@dataclass(frozen=True)
class Target:
    """Where a pass writes one kind of record: rows of `job` whose struct column `column` is set, errors of `stage`."""

    ref: StageRef
    record_type: type
    job: str
    column: str
    stage: str


@dataclass
class Tally:
    """What a pass counted for one target. `unasked` rows are not failures: when their turn came the budget was spent, or the
    endpoint silent, and `silent` says which one.

    Tokens are those of the rows, failed ones included.
    """

    rows_out: int = 0
    failed: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    first_failures: list[str] = field(default_factory=list)
    unasked: int = 0
    silent: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def add(self, counted: Counted) -> None:
        """Count a part."""
        self.rows_out += counted["rows_out"]
        self.failed += counted["failed"]
        self.failures.update(counted["failures"])
        self.first_failures = (self.first_failures + counted["first"])[:3]
        self.unasked += counted["unasked"]
        self.silent = self.silent or counted.get("silent", "")
        self.prompt_tokens += counted["prompt_tokens"]
        self.completion_tokens += counted["completion_tokens"]
        self.cached_tokens += counted["cached_tokens"]


def part_rows(folder_uri: str) -> dict[str, int]:
    """Rows of each part of a folder, by name, from the files' footers."""
    filesystem = files.resolve(folder_uri)[0]
    paths = files.list_files(folder_uri, ".parquet")
    with ThreadPoolExecutor(READERS) as pool:
        rows = pool.map(lambda path: pq.read_metadata(path, filesystem=filesystem).num_rows, paths)
        return {path.rsplit("/", 1)[1].removesuffix(".parquet"): count for path, count in zip(paths, rows, strict=True)}


def read_part(folder_uri: str, part: str) -> pa.Table | None:
    """One part of a folder, None where the stage wrote no row of it."""
    filesystem, path = files.resolve(files.join(folder_uri, f"{part}.parquet"))
    try:
        return pq.read_table(path, filesystem=filesystem)
    except FileNotFoundError:
        return None


def read_parts(folder_uri: str, *others: str) -> Iterator[tuple[str, list[pa.Table]]]:
    """The parts of a folder by name, one at a time, each with the same part of other folders; only where all have it."""
    for part in part_rows(folder_uri):
        tables = [table for uri in (folder_uri, *others) if (table := read_part(uri, part)) is not None]
        if len(tables) == 1 + len(others):
            yield part, tables


def write_part(folder_uri: str, part: str, table: pa.Table) -> None:
    """Write one part, whole or not at all; an earlier file of that name is replaced."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    files.write_atomic(files.join(folder_uri, f"{part}.parquet"), buffer.getvalue())


def leave_out(folder_uri: str, id_column: str, ids: Set[str]) -> None:
    """Write the parts that hold some of these rows anew, without them; a part at a time."""
    for part, (table,) in read_parts(folder_uri):
        stays = pa.array([row_id not in ids for row_id in table[id_column].to_pylist()], pa.bool_())
        kept = table.filter(stays)
        if kept.num_rows < table.num_rows:
            write_part(folder_uri, part, kept)


def _unnest(column: pa.ChunkedArray, schema: pa.Schema) -> pa.Table:
    """The structs of a column that are set, as a table with the record's schema."""
    rows = column.drop_null().to_pylist()
    return pa.Table.from_pylist(rows, schema=schema)


class _Writer:
    """Writes a block (rows of one part and job) to its targets and passes on what it counted."""

    def __init__(self, targets: Sequence[Target]):
        self._targets = targets

    def __call__(self, block: pa.Table) -> pa.Table:
        counted = []
        for job, part in sorted({(row["job"], row["part"]) for row in block.select(["job", "part"]).to_pylist()}):
            mine = block.filter(pc.and_(pc.equal(block["job"], job), pc.equal(block["part"], part)))
            counted += [self._write(target, part, mine) for target in self._targets if target.job == job]
        return pa.table({"counted": [json.dumps(item) for item in counted]})

    def _write(self, target: Target, part: str, block: pa.Table) -> Counted:
        records = _unnest(block[target.column], schema_of(target.record_type))
        errors = [row for row in block["error"].drop_null().to_pylist() if row["stage"] == target.stage]
        failed = [row for row in errors if row["reason"] not in (BUDGET_REACHED, ENDPOINT_SILENT)]
        error_table = pa.Table.from_pylist(errors, schema=schema_of(ErrorRow))
        for folder, table in ((target.ref.data_uri, records), (target.ref.errors_uri, error_table)):
            if table.num_rows:
                write_part(folder, part, table)
            else:  # a task that Ray tried before may have got other results
                files.delete_file(files.join(folder, f"{part}.parquet"))
        counted: Counted = {
            "key": target.ref.key,
            "rows_out": records.num_rows,
            "failed": len(failed),
            "failures": Counter(row["reason"] for row in failed),
            "first": [f"{row['row_id']}: {row['reason']}" for row in failed[:3]],
            "unasked": len(errors) - len(failed),
        } | {column: _token_sum(records, column) + _token_sum(error_table, column) for column in TOKEN_COLUMNS}
        silent = [row["detail"] for row in errors if row["reason"] == ENDPOINT_SILENT]
        if silent:
            counted["silent"] = silent[0]
        if not counted["unasked"]:
            write_mark(target.ref, part, counted)
        return counted


def _token_sum(records: pa.Table, column: str) -> int:
    return int(pc.sum(records[column]).as_py() or 0) if column in records.column_names else 0


def run_pass(
    name: str,
    items: Sequence[WorkItem],
    read: Callable[[str, str], Iterable[pa.Table]],
    stages: Stages,
    targets: Sequence[Target],
    max_failure_rate: float,
) -> dict[str, Tally]:
    """Execute one pass and return the tally of each target by its stage key.

    `read(job, part)` yields the rows of a work item, in a Ray task; `stages` adds the operators that turn them into rows
    with the columns `job`, `part`, `error` and each target's `column`. Operators that may hold GPUs are added by
    `map_batches_internal`: `map_batches` refuses them whole blocks, as blocks may be large; ours are parts. Raises
    StageFailed.
    """
    if not items:
        raise StageFailed(
            f"{name}: there is nothing to do: the stages before it wrote no row. See their errors folders."
        )
    tallies = {target.ref.key: Tally() for target in targets}
    left = _left_to_do(name, items, targets, tallies)
    progress = _Progress(name, sum(item.rows for item in items), _through(targets, tallies))
    if left:
        dataset = ray.data.from_items([{"job": i.job, "part": i.part} for i in left], override_num_blocks=len(left))
        dataset = dataset.map_batches(_Reader(read), batch_format="pyarrow", batch_size=1)
        counted = stages(dataset).map_batches(
            _Writer(targets), batch_format="pyarrow", batch_size=None, compute=ray.data.TaskPoolStrategy(size=writers())
        )
        measures.show_waiting(name, sum(item.rows for item in left))
        try:
            for row in counted.iter_rows():
                item = json.loads(row["counted"])
                tallies[item["key"]].add(item)
                measures.count_rows(item["key"], item["rows_out"], item["failures"])
                measures.count_tokens(item["key"], item["prompt_tokens"], item["completion_tokens"])
                progress.show(tallies.values(), _through(targets, tallies))
        except ExecutionTimeoutError:
            seconds = ray.data.DataContext.get_current().execution_no_progress_timeout_s
            raise StageFailed(
                f"{name}: nothing has gone forward for {seconds:.0f} s, so something hangs: an engine that starts, a storage, "
                "or a cluster without room for the actors. Look at `ray status` and the actors' logs. What was finished is "
                "kept; the same command goes on from there."
            ) from None
        finally:
            measures.show_waiting(name, 0)
    try:
        settle(targets, tallies, max_failure_rate)
    except BudgetReached:
        raise
    except StageFailed as error:
        # The user mends the cause and runs the same command: then these rows get another chance.
        finished = error.finished if isinstance(error, NotAllAsked) else {}
        for target in targets:
            if target.ref.key not in finished:
                forget(target.ref, failed_only=not isinstance(error, RowsLost))
        raise
    return tallies


def _left_to_do(
    name: str, items: Sequence[WorkItem], targets: Sequence[Target], tallies: dict[str, Tally]
) -> list[WorkItem]:
    """The items that no earlier attempt finished; what was counted of the others is added to the tallies."""
    left = []
    for job in dict.fromkeys(item.job for item in items):
        mine = [item for item in items if item.job == job]
        refs = [target.ref for target in targets if target.job == job]
        finished = take_over(refs, [item.part for item in mine])
        for counted in (entry for entries in finished.values() for entry in entries):
            tallies[counted["key"]].add(counted)
        left += [item for item in mine if item.part not in finished]
    if len(left) < len(items):
        log.info("%s: %d of %d parts were finished by an earlier attempt", name, len(items) - len(left), len(items))
    return left


def settle(targets: Sequence[Target], tallies: dict[str, Tally], max_failure_rate: float) -> None:
    """Raise StageFailed where rows were lost, doubled or failed too often, and NotAllAsked where some were not asked
    about."""
    for target in targets:
        _check_ids(target, tallies[target.ref.key])
    # The pass went to its end: questions under way came back and are kept, and answers already sampled are too.
    unasked = {key: tally for key, tally in tallies.items() if tally.unasked}
    finished = {key: tally for key, tally in tallies.items() if not tally.unasked}
    counts = ", ".join(f"{key}: {t.unasked} of {t.unasked + t.rows_out + t.failed} rows" for key, t in unasked.items())
    silent = next((tally.silent for tally in unasked.values() if tally.silent), None)
    if silent:  # told before the failures, which are the time-outs that showed it
        raise EndpointSilent(
            f"An endpoint answers nothing, so not all rows were asked about ({counts}): {silent}. Find out why it hangs (is "
            "its server up, has it more to do than it bears, does a proxy swallow the replies?), and run the same command "
            "again: what was answered is kept, the rest is asked.",
            {key: tally for key, tally in finished.items() if not _too_many_failed(tally, max_failure_rate)},
        )
    for target in targets:
        check_failure_rate(target.ref, tallies[target.ref.key], max_failure_rate)
    if unasked:
        raise BudgetReached(f"The budget is spent, so not all rows were asked about ({counts}).", finished)


def _through(targets: Sequence[Target], tallies: dict[str, Tally]) -> int:
    """Rows that are through the whole pass: those of each job's last target."""
    last = {target.job: tallies[target.ref.key] for target in targets}
    return sum(tally.rows_out + tally.failed + tally.unasked for tally in last.values())


def writers() -> int | None:
    """How many processes may write at a time; None, as many as have room, on a cluster that was joined."""
    return None if joined_cluster() else WRITERS_HERE


class _Reader:
    """Turns a work item into its rows; a class so that Ray Data ships the function with it."""

    def __init__(self, read: Callable[[str, str], Iterable[pa.Table]]):
        self._read = read

    def __call__(self, item: pa.Table) -> Iterable[pa.Table]:
        row = item.to_pylist()[0]
        yield from self._read(row["job"], row["part"])


def _check_ids(target: Target, tally: Tally) -> None:
    """Raise StageFailed where a record was written twice or a written one is not in the files."""
    paths = files.list_files(target.ref.data_uri, ".parquet")
    if not paths:
        return
    id_column = schema_of(target.record_type).names[0]
    filesystem = files.resolve(target.ref.data_uri)[0]

    def hashes(path: str) -> "array[int]":
        column = pq.read_table(path, columns=[id_column], filesystem=filesystem, use_threads=False)[id_column]
        return array("q", map(hash, column.to_pylist()))

    # 8 bytes an id: of a million rows the driver holds 8 MB here.
    ids = array("q")
    with ThreadPoolExecutor(READERS) as pool:
        for found in pool.map(hashes, paths):
            ids.extend(found)
    distinct = len(numpy.unique(numpy.frombuffer(ids, dtype="int64")))
    if len(ids) != tally.rows_out or distinct != len(ids):
        raise RowsLost(
            f"{target.ref.key}: {tally.rows_out} rows were counted, the files in {target.ref.data_uri} hold {len(ids)} "
            f"with {distinct} distinct {id_column}s. Rows were lost or doubled: two rows of a source have the same id and "
            "content, or the program or the storage is at fault. Mend the source, or run the same command again: the "
            "stage starts afresh."
        )


def check_failure_rate(ref: StageRef, tally: Tally, limit: float) -> None:
    """Raise StageFailed where more rows failed than the limit allows; says the first reasons and where the rest lie."""
    total = tally.rows_out + tally.failed
    if _too_many_failed(tally, limit):
        reasons = ", ".join(f"{reason} x{count}" for reason, count in tally.failures.most_common(5))
        raise StageFailed(
            f"{ref.key}: {tally.failed} of {total} rows failed ({tally.failed / total:.1%}, max_failure_rate allows "
            f"{limit:.1%}). Reasons: {reasons}. First rows: {'; '.join(tally.first_failures)}. All are in {ref.errors_uri}. "
            "Mend the cause and run the same command again, or raise max_failure_rate if that loss is acceptable."
        )


def _too_many_failed(tally: Tally, limit: float) -> bool:
    return tally.failed > limit * (tally.rows_out + tally.failed)


class _Progress:
    """Log lines of a pass: rows done of total, rate, time to go, failures; as data too, for the attempt's log and status."""

    def __init__(self, name: str, expected: int, done_before: int):
        self._name, self._expected, self._before = name, expected, done_before
        self._start = self._last = time.monotonic()
        first = Progress(name, "rows", done_before, expected, 0.0)
        log.info("%s: %d of %d rows to do", name, expected - done_before, expected, extra={"progress": first})

    def show(self, tallies: Iterable[Tally], done: int) -> None:
        now = time.monotonic()
        if now - self._last < PROGRESS_SECONDS and done < self._expected:
            return
        self._last = now
        rate = (done - self._before) / max(now - self._start, 1e-9)
        measures.show_waiting(self._name, self._expected - done)
        failures = sum((tally.failures for tally in tallies), Counter[str]())
        progress = Progress(self._name, "rows", done, self._expected, rate, dict(failures))
        log.info(
            "%s: %d of %d rows, %.1f rows/s, %s, %d failed",
            self._name,
            done,
            self._expected,
            rate,
            progress.to_go,
            failures.total(),
            extra={"progress": progress},
        )
