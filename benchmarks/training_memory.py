"""How much memory a training worker's data takes: the rows in Arrow, and pictures decoded only for the batch at hand.

Contract: writes parquet files of demonstrations over pictures of 640x480, reads them as a training worker does (the same data
set, TRL's collator, batches in random order), and prints what the process held before, with the data set open, and at its
peak over an epoch, for each number of rows; and what the decoded pictures would take if they were all held. No model runs.
Each size is measured in a process of its own.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from PIL import Image as Pillow

from dream_ray.config import ImageConfig, StudentConfig
from dream_ray.images import sha256
from dream_ray.records import Demonstration, Image, Prompt, Risk, Turn, make_prompt, to_table

SIZE = (640, 480)
PICTURES = 500
"""Distinct pictures; rows beyond share them."""
BATCH = 4
ANSWER = "A calm answer of some length, which names what is at stake and offers a way on that helps. " * 4


def write_files(folder: Path, rows: int) -> tuple[str, str]:
    """Prompts and demonstrations as parquet files."""
    images = []
    for index in range(min(rows, PICTURES)):
        path = folder / f"{index}.jpg"
        Pillow.effect_noise(SIZE, 20 + index % 80).convert("RGB").save(path, quality=85)
        images.append(Image(sha256(path.read_bytes()), str(path), *SIZE, "drawn"))
    prompts = [
        make_prompt(
            source="benchmark",
            source_id=str(number),
            turns=[
                Turn(
                    "user", f"What is the matter with number {number} of this series?", (images[number % len(images)],)
                )
            ],
        )
        for number in range(rows)
    ]
    shown = [Demonstration(prompt.prompt_id, ANSWER, Risk.BENIGN, 0, 0) for prompt in prompts]
    pq.write_table(to_table(Prompt, prompts), folder / "prompts.parquet")
    pq.write_table(to_table(Demonstration, shown), folder / "demonstrations.parquet")
    return str(folder / "prompts.parquet"), str(folder / "demonstrations.parquet")


def measure(model: str, folder: str, rows: int) -> None:
    """Read an epoch and print one line."""
    import torch
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    from dream_ray.student import StudentReader
    from dream_ray.train.data import sft_dataset

    process = psutil.Process(os.getpid())
    reader = StudentReader(Path(model), StudentConfig(model=model), ImageConfig())
    before = process.memory_info().rss
    data = sft_dataset([f"{folder}/prompts.parquet"], [f"{folder}/demonstrations.parquet"], reader)
    opened = process.memory_info().rss
    collate = DataCollatorForVisionLanguageModeling(reader.processor, completion_only_loss=True)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True, collate_fn=collate)
    peak, seen, started = opened, 0, time.monotonic()
    for batch in loader:
        seen += len(batch["input_ids"])
        peak = max(peak, process.memory_info().rss)
    mib = 2**20
    print(
        f"{rows:7d} rows: {before / mib:6.0f} MiB before, {opened / mib:6.0f} with the data set open, {peak / mib:6.0f} at its "
        f"peak over {seen} rows ({seen / (time.monotonic() - started):.0f} rows/s); all pictures decoded would take "
        f"{rows * SIZE[0] * SIZE[1] * 3 / mib:.0f} MiB",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--model", default="build/student", help="a model folder whose processor reads the rows")
    options = parser.parse_args()
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), rows)
            process = multiprocessing.get_context("spawn").Process(target=measure, args=(options.model, folder, rows))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"measuring {rows} rows failed")


if __name__ == "__main__":
    main()
