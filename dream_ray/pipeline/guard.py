"""Rows that kill what they are worked on in: told by what was under way when it died, and set aside.

    <run_dir>/in_flight/<job>/<part>.json    {"deaths": 1, "told": false, "killed": []}

Contract: `Guarded` is a Ray Data actor class around another one, which maps a block (rows of one part) to a table. When an
actor's process dies, Ray starts it again and gives it the same blocks, without end. So before a block is handed over, a file
says what is true should the process die now, and after it the file goes. Who finds such a file narrows the search until each
row is alone in its actor, and one that dies so becomes what the actor's `set_aside` makes of it, an ErrorRow with the
reason KILLED. An engine that broke, hangs or lost its process (EngineDied) is told before its actor's process ends, so that
Ray starts another: the rows that were in it are alone at once, and the one that broke it is set aside after two tries. A
process that ends without a word most often went with its machine, and no row is to blame: the part gets one more try as
a whole, alone in its actor, before its rows do. Where the first rows of a part all die, it is not the rows: EngineError.

While nothing dies, this costs one look, one small file written and one removed a part. The folder belongs to one pass
(run.py): the actors of a driver that was killed die with it, which must accuse no row.
"""

import asyncio
import dataclasses
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pyarrow as pa

from dream_ray import files
from dream_ray.engine.engine import EngineDied, EngineError, end_process

log = logging.getLogger(__name__)

KILLED = "killed_its_process"
"""The reason of a row that was set aside."""
TOGETHER = 2
"""Deaths without a word of a part before its rows are told apart. One is what every lost machine costs: sampling all that
was in its engines row by row then would take longer than an engine's start."""
NOT_THE_ROWS = 3
"""Rows at the beginning of a part that die, each alone, before the engine or the machine is blamed."""
UNSEEN = "its process ended without a word (a crash in native code, or memory ran out)"
"""What is known of a death that nobody could report."""


@dataclasses.dataclass(frozen=True)
class Flight:
    """What is true of a part whose process has died: how often it was in it as a whole, whether the last of these was the
    engine's own, and which rows (by position) were alone in it, with why."""

    deaths: int = 0
    told: bool = False
    killed: tuple[tuple[int, str], ...] = ()

    @property
    def row_by_row(self) -> bool:
        """Whether it is time to tell the part's rows apart."""
        return self.told or self.deaths >= TOGETHER


def flight_uri(in_flight_uri: str, job: str, part: str) -> str:
    """The file of a part."""
    return files.join(in_flight_uri, job, f"{part}.json")


def read_flight(uri: str) -> Flight:
    """What an earlier process left; nothing has happened where there is no file, or half of one."""
    try:
        found = json.loads(files.read_bytes(uri))
        return Flight(found["deaths"], found["told"], tuple((at, why) for at, why in found["killed"]))
    except (FileNotFoundError, ValueError):
        return Flight()


def write_flight(uri: str, flight: Flight) -> None:
    """Say what is true if this process dies now."""
    files.write_atomic(uri, json.dumps(dataclasses.asdict(flight)).encode())


class Guarded:
    """Ray Data actor class (batch_format="pyarrow", batch_size=None); see the module's contract.

    It is applied by `Dataset.map_batches_internal`, which differs from `map_batches` in one thing: that refuses whole blocks
    to actors with GPUs, because blocks may be large. Ours are parts.
    """

    def __init__(self, in_flight_uri: str, actor: type, *arguments: Any):
        self._uri = in_flight_uri
        self._actor = actor(*arguments)
        self._door = _Door()
        self._under_way: dict[str, Flight] = {}
        """What is in the actor now, by its file: what is true should the process die."""

    async def __call__(self, block: pa.Table) -> pa.Table:
        """What the actor makes of the block, rows that kill it set aside. Raises what the actor raises, and EngineError."""
        route = block.select(["job", "part"]).slice(0, 1).to_pylist()[0]
        uri = flight_uri(self._uri, route["job"], route["part"])
        flight = await asyncio.to_thread(read_flight, uri)
        async with self._door.alone() if flight.deaths else self._door.together():
            if flight.row_by_row:
                table = await self._one_by_one(uri, flight, block)
            else:
                table = await self._hand_over(uri, Flight(flight.deaths + 1), block)
        await asyncio.to_thread(files.delete_file, uri)
        return table

    async def _one_by_one(self, uri: str, flight: Flight, block: pa.Table) -> pa.Table:
        """The part row by row. What was done before the last death is done again: it went with the process."""
        log.warning("%s: looking for the row that kills its process", uri)
        killed = dict(flight.killed)
        tables = []
        for at in range(block.num_rows):
            row = block.slice(at, 1)
            if at in killed:
                tables.append(self._actor.set_aside(row, KILLED, killed[at], flight.deaths + 1))
                continue
            if at == len(killed) == NOT_THE_ROWS:
                raise EngineError(
                    f"The first {NOT_THE_ROWS} rows of the part {uri.rsplit('/', 1)[1]} ended their process one after the "
                    f"other, each alone in it ({killed[at - 1]}), so it is not the rows. Look for the engine's message "
                    "above, at the memory of the machine and of the GPU, and at the engine's settings."
                )
            if_it_dies = dataclasses.replace(flight, killed=(*flight.killed, (at, UNSEEN)))
            tables.append(await self._hand_over(uri, if_it_dies, row))
        return pa.concat_tables(tables)

    async def _hand_over(self, uri: str, if_it_dies: Flight, rows: pa.Table) -> pa.Table:
        await asyncio.to_thread(write_flight, uri, if_it_dies)
        self._under_way[uri] = if_it_dies
        try:
            return await self._actor(rows)
        except EngineDied as error:
            log.error("%s: the engine died (%s); starting another", uri, error)
            for each, flight in self._under_way.items():  # whatever was in it may have broken it
                write_flight(each, _told(flight, str(error)))
            end_process()
            raise
        finally:
            del self._under_way[uri]


def _told(flight: Flight, why: str) -> Flight:
    """What is true of a part whose engine died, which said why."""
    killed = (*flight.killed[:-1], (flight.killed[-1][0], why)) if flight.killed else ()
    return dataclasses.replace(flight, told=True, killed=killed)


class _Door:
    """Lets in many together, or one alone, in the order in which they came."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        async with self._turn:
            self._inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._turn:
            await self._empty.wait()
            yield
