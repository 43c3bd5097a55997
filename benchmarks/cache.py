"""What the response cache bears: lookups a second and bytes per entry, at a million entries unless told otherwise.

Contract: fills a cache in a folder of its own (below --folder, the system's temporary one unless set), with replies of the
length that a teacher's list of observations has, and measures it by the calls that the chat models make. Prints one line a
number and removes the folder, also when it is stopped.
"""

import argparse
import asyncio
import hashlib
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dream_ray.chat.cache import ResponseCache
from dream_ray.chat.protocol import ChatReply

REPLY = (
    '[{"content": "a hand reaches over a locked gate", "source": "image content", "category": "Illegal activities"}, '
    '{"content": "asks how to get past the gate", "source": "text instruction", "category": "Illegal activities"}]'
)
"""One reply: 220 characters."""


def key_of(number: int, kind: str = "entry") -> str:
    """A key as the cache's user makes them."""
    return hashlib.sha256(f"{kind} {number}".encode()).hexdigest()


async def fill(cache: ResponseCache, entries: int, workers: int) -> float:
    """Store the entries; seconds."""
    reply = ChatReply(REPLY, prompt_tokens=1_234, completion_tokens=87, cached_tokens=1_024)
    numbers = iter(range(entries))

    async def work() -> None:
        for number in numbers:
            await cache.keep(key_of(number), reply)

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(workers)))
    return time.perf_counter() - start


async def look_up(cache: ResponseCache, keys: Sequence[str], hit: bool, workers: int) -> float:
    """Look all keys up, each of them a hit or each a miss; lookups a second. Raises RuntimeError where one is not."""
    waiting = iter(keys)

    async def work() -> None:
        for key in waiting:
            if (await cache.find(key) is not None) is not hit:
                raise RuntimeError(f"The key {key} should be {'a hit' if hit else 'a miss'}, but is not.")

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(workers)))
    return len(keys) / (time.perf_counter() - start)


def sizes(folder: Path) -> tuple[int, int]:
    """Bytes of all files: as their length says, and as the file system allots them, folders included."""
    apparent = allotted = 0
    stack = [str(folder)]
    while stack:
        with os.scandir(stack.pop()) as found:
            for item in found:
                status = item.stat()
                allotted += status.st_blocks * 512
                if item.is_dir():
                    stack.append(item.path)
                else:
                    apparent += status.st_size
    return apparent, allotted


def main() -> None:
    """Fill, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--lookups", type=int, default=10_000, help="of each kind, at keys drawn evenly")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes")
    options = parser.parse_args()
    draw = random.Random(0)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        cache = ResponseCache(folder)
        seconds = asyncio.run(fill(cache, options.entries, workers=32))
        print(
            f"entries: {options.entries}, stored at {options.entries / seconds:.0f} a second ({seconds:.0f} s)",
            flush=True,
        )
        for workers in (1, 32):
            hits = [key_of(draw.randrange(options.entries)) for _ in range(options.lookups)]
            misses = [key_of(number, f"absent {workers}") for number in range(options.lookups)]
            # The second time what the file system reads from disk is in its memory.
            for when in ("first time", "again"):
                for label, keys, hit in (("hits", hits, True), ("misses", misses, False)):
                    rate = asyncio.run(look_up(cache, keys, hit, workers))
                    print(f"{label}, {workers} at a time, {when}: {rate:.0f} lookups/s", flush=True)
        apparent, allotted = sizes(Path(folder))
        print(
            f"bytes per entry: {apparent / options.entries:.0f}, on disk {allotted / options.entries:.0f}", flush=True
        )


if __name__ == "__main__":
    main()
