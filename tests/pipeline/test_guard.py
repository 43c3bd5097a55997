"""Which row kills: deaths as Ray Data would see them, each followed by the same blocks for a new actor. No Ray."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dream_ray.engine.engine import EngineDied, EngineError
from dream_ray.outcomes import outcome_table
from dream_ray.pipeline import guard
from dream_ray.pipeline.data_stages import KeepRoute, labelled
from dream_ray.pipeline.guard import KILLED, Flight, Guarded, flight_uri, read_flight, write_flight
from dream_ray.records import Disentanglement, ErrorRow

PART = "train-00-000000"


class Death(BaseException):
    """The end of the process: nothing that stands after it is carried out."""


class Fragile:
    """Observes ids; its process ends, or its engine dies, where the ids that kill are among those under way."""

    def __init__(self, poison: set[str], how: str, asked: Counter[str], most: list[int]):
        self._poison, self._how, self._asked, self._most = poison, how, asked, most
        self._under_way: set[str] = set()

    async def __call__(self, block: pa.Table) -> pa.Table:
        ids = block["id"].to_pylist()
        self._under_way |= set(ids)
        self._asked.update(ids)
        self._most.append(len(self._under_way))
        await asyncio.sleep(0.1)  # so that the blocks of a pass overlap, also on a busy machine
        if self._under_way & self._poison:
            raise Death if self._how == "crash" else EngineDied("CUDA error")
        self._under_way -= set(ids)
        return outcome_table(Disentanglement, [Disentanglement(name, (), 0, 0, 1, 1, 0) for name in ids])

    @staticmethod
    def set_aside(row: pa.Table, reason: str, detail: str, attempts: int) -> pa.Table:
        return outcome_table(
            Disentanglement, [ErrorRow("disentangle", row["id"].to_pylist()[0], reason, detail, attempts)]
        )


@pytest.fixture(autouse=True)
def _no_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    def end() -> None:
        raise Death

    monkeypatch.setattr(guard, "end_process", end)


def block_of(part: str, *ids: str) -> pa.Table:
    return labelled(pa.table({"id": list(ids)}), "job", part)


def actor_of(folder: Path, *arguments: Any) -> Guarded:
    return Guarded(str(folder), KeepRoute, Fragile, *arguments)


class Pass:
    """Does what Ray Data does: all blocks at once to one actor; after a death, those that are left to a new one."""

    def __init__(self, folder: Path, poison: set[str], how: str = "crash"):
        self.folder, self.poison, self.how = folder, poison, how
        self.asked: Counter[str] = Counter()
        self.most: list[int] = []
        self.deaths = 0

    def run(self, *blocks: pa.Table) -> list[dict[str, Any]]:
        done: dict[int, pa.Table] = {}
        while len(done) < len(blocks):
            assert self.deaths < 20
            asyncio.run(self._one_life(blocks, done))
        return [row for at in sorted(done) for row in done[at].to_pylist()]

    async def _one_life(self, blocks: tuple[pa.Table, ...], done: dict[int, pa.Table]) -> None:
        died = asyncio.Event()
        write, delete = guard.write_flight, guard.files.delete_file
        with pytest.MonkeyPatch.context() as patch:
            # A dead process writes and removes no file: not in a `finally`, and not in the call that was next in turn.
            patch.setattr(guard, "write_flight", lambda uri, flight: died.is_set() or write(uri, flight))
            patch.setattr(guard.files, "delete_file", lambda uri: died.is_set() or delete(uri))
            await self._until(died, blocks, done)
        self.deaths += died.is_set()

    async def _until(self, died: asyncio.Event, blocks: tuple[pa.Table, ...], done: dict[int, pa.Table]) -> None:
        """One actor, until all is done or it has died."""
        actor = actor_of(self.folder, self.poison, self.how, self.asked, self.most)

        async def give(at: int) -> None:
            try:
                done[at] = await actor(blocks[at])
            except Death:
                died.set()
                await asyncio.Event().wait()  # a dead process goes on with nothing

        tasks = [asyncio.ensure_future(give(at)) for at in range(len(blocks)) if at not in done]
        everything = asyncio.gather(*tasks)
        dying = asyncio.ensure_future(died.wait())
        await asyncio.wait([everything, dying], return_when=asyncio.FIRST_COMPLETED)
        if not died.is_set():
            dying.cancel()
            everything.result()
            return
        everything.cancel()
        await asyncio.gather(everything, return_exceptions=True)


def reasons(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["error"]["row_id"]: row["error"]["reason"] for row in rows if row["error"]}


@pytest.mark.parametrize(
    ("how", "tries"),
    [
        ("engine", 2),
        ("crash", 3),
    ],  # among all, alone; in between, where nothing told that it was the engine, its part alone
)
def test_the_row_that_kills_is_set_aside_and_the_others_are_not(tmp_path: Path, how: str, tries: int) -> None:
    going = Pass(tmp_path, {"f"}, how)
    rows = going.run(block_of("p0", "a", "b"), block_of("p1", "c", "d"), block_of("p2", "e", "f", "g"))
    assert reasons(rows) == {"f": KILLED}
    assert sorted(row["record"]["prompt_id"] for row in rows if row["record"]) == ["a", "b", "c", "d", "e", "g"]
    assert going.deaths == tries
    assert going.asked["f"] == tries
    (error,) = [row["error"] for row in rows if row["error"]]
    assert error["attempts"] == tries
    assert ("CUDA error" in error["detail"]) == (how == "engine")
    # Parts beside it were done again at most once, and together.
    assert max(going.asked[name] for name in "abcd") == 2
    assert not list(tmp_path.rglob("*.json"))


def test_two_rows_of_one_part_are_both_found(tmp_path: Path) -> None:
    rows = Pass(tmp_path, {"b", "d"}).run(block_of("p0", "a", "b", "c", "d"))
    assert reasons(rows) == {"b": KILLED, "d": KILLED}


def test_one_death_sets_nothing_aside(tmp_path: Path) -> None:
    """A machine that is lost: the part is done again as a whole."""
    write_flight(flight_uri(str(tmp_path), "job", PART), Flight(1))
    going = Pass(tmp_path, set())
    assert not reasons(going.run(block_of(PART, "a", "b")))
    assert going.most == [2]


def test_when_nothing_dies_parts_are_worked_on_together_and_no_file_is_left(tmp_path: Path) -> None:
    going = Pass(tmp_path, set())
    going.run(block_of("p0", "a"), block_of("p1", "b"), block_of("p2", "c"))
    assert max(going.most) == 3
    assert not list(tmp_path.rglob("*.json"))


def test_where_every_row_dies_it_is_not_the_rows(tmp_path: Path) -> None:
    going = Pass(tmp_path, set("abcde"), "engine")
    with pytest.raises(EngineError, match=r"first 3 rows .* \(CUDA error\), so it is not the rows"):
        going.run(block_of("p0", "a", "b", "c", "d", "e"))


def test_a_torn_file_accuses_nobody(tmp_path: Path) -> None:
    uri = flight_uri(str(tmp_path), "job", PART)
    write_flight(uri, Flight(2, True, ((1, "x"),)))
    assert read_flight(uri) == Flight(2, True, ((1, "x"),))
    Path(uri).write_text('{"deaths"')
    assert read_flight(uri) == Flight()
