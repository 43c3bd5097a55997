"""How much memory the ingest of a large source takes, and how many rows a second it does.

Contract: writes a synthetic source (prompts.jsonl and pictures, drawn from our own words), runs the real ingest stage over
it on a Ray started here, and prints what this process held before and at its peak, what all processes held together, and
rows a second. Run it with two sizes: what the driver holds must not grow with the rows.
"""

import argparse
import json
import logging
import random
import resource
import tempfile
import time
from pathlib import Path

from PIL import Image

from dream_ray.config import Config
from dream_ray.pipeline.cluster import connected
from dream_ray.pipeline.data_stages import ingest
from dream_ray.pipeline.run import Run

WORDS = "garden river market window kettle bicycle lantern meadow harbour pencil orchard winter".split()
SPLITS = ("train", "train", "train", "dev", "held_out")


def write_source(folder: Path, rows: int, pictures: int) -> Path:
    """`rows` prompts over `pictures` noisy pictures of 256x256, every tenth turned by its EXIF tag."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index in range(pictures):
        noise = Image.effect_noise((256, 256), 20 + index % 80).convert("RGB")
        exif = Image.Exif()
        if index % 10 == 0:
            exif[0x0112] = 6
        noise.save(folder / "images" / f"{index}.jpg", quality=80, exif=exif)
    chooser = random.Random(0)
    path = folder / "prompts.jsonl"
    with path.open("w") as file:
        for number in range(rows):
            text = f"What has the {' '.join(chooser.choices(WORDS, k=60))} to do with number {number}?"
            turn = {"text": text, "images": [f"images/{number % pictures}.jpg"]}
            row = {"id": str(number), "turns": [turn], "split": SPLITS[number % 5], "risk": "benign"}
            file.write(json.dumps(row) + "\n")
    return path


def peak_mib() -> float:
    """The most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--pictures", type=int, default=2_000)
    parser.add_argument("--part-rows", type=int, default=256)
    parser.add_argument(
        "--model", default="build/student", help="the model folder whose processor measures the prompts"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    with tempfile.TemporaryDirectory() as folder:
        path = write_source(Path(folder) / "source", options.rows, options.pictures)
        config = Config.model_validate(
            {
                "name": "ingest",
                "student": {"model": options.model},
                "part_rows": options.part_rows,
                "sources": [{"path": str(path)}],
                "cluster": {"local_num_cpus": 4},
            }
        )
        with connected(config):
            before = peak_mib()
            start = time.perf_counter()
            done = ingest(Run(config, str(Path(folder) / "run")))
            seconds = time.perf_counter() - start
        manifest = done.manifest
        together = manifest.peak_memory_bytes
        print(
            f"{manifest.rows_out:,} rows, {manifest.failed} failed, source {path.stat().st_size / 2**20:.0f} MiB of text"
        )
        print(f"{manifest.rows_out / seconds:.0f} rows/s ({seconds:.0f} s)")
        print(f"driver: {before:.0f} MiB before ingest, {peak_mib():.0f} MiB at its peak")
        print("all processes: " + ("not measured" if together is None else f"{together / 2**20:.0f} MiB at their peak"))


if __name__ == "__main__":
    main()
