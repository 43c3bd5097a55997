"""How long a training step on a CPU takes with each way of waiting and keeping memory, and in bfloat16 (dream_ray/cpu.py).

    python benchmarks/cpu.py [--model build/student] [--rounds 3] [--steps 12]

Contract: the same steps of our SFT, on prompts with a picture of our own words, in a process of its own for each way, by turns,
first with the machine to itself, then beside a process that keeps one core busy. Prints the median step and its ratio to that
of the way that a run takes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from dream_ray import cpu

IN_BFLOAT16 = "in bfloat16"
WAYS = {
    "as in a run": cpu.WAITING | cpu.KEEPING,
    "memory by default": cpu.WAITING,
    "sleeping at once": cpu.KEEPING | {"OMP_WAIT_POLICY": "PASSIVE"},
    "spinning on": cpu.KEEPING,
    IN_BFLOAT16: cpu.WAITING | cpu.KEEPING,
}


def steps(model: str, count: int, bf16: bool) -> list[float]:
    """Seconds of each of so many steps, in this process."""
    from train import Side, write_rows

    from dream_ray.config import ImageConfig, LoraConfig, SftConfig, StudentConfig
    from dream_ray.train import ray_adapter, sft
    from dream_ray.train.answer_logits import score_answers_only

    ray_adapter._use_all_cores(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {
            **write_rows(folder, 32), "skip": (), "model": model, "student": StudentConfig(model=model), "lora": LoraConfig(),
            "images": ImageConfig(), "seed": 0,
        }  # fmt: skip
        train = SftConfig(use_gpu=False, bf16=bf16, num_workers=0, batch_size=4, micro_batch_size=4)
        side = Side(
            sft.build_trainer(settings, ray_adapter._arguments(train, folder / "out")), count, score_answers_only
        )
        side.turn()
        return side.clock.steps


def main() -> None:
    """Take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="build/student", help="a folder of a multimodal model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="timed steps of a turn")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(steps(chosen.model, chosen.steps, chosen.one == IN_BFLOAT16)))
        return
    names = {name for way in WAYS.values() for name in way}
    clean = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, __file__, "--model", chosen.model, "--steps", str(chosen.steps)]
    for beside in (False, True):
        seconds: dict[str, list[float]] = defaultdict(list)
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if beside else None
        try:
            for _ in range(chosen.rounds):
                for name, way in WAYS.items():
                    done = subprocess.run(
                        [*command, "--one", name], env=clean | way, check=True, stdout=subprocess.PIPE, text=True
                    )
                    seconds[name] += json.loads(done.stdout.splitlines()[-1])
        finally:
            if busy:
                busy.kill()
        print(f"\n| {'beside a busy process' if beside else 'alone'} | median step | ratio |\n|---|---|---|")
        ours = statistics.median(seconds["as in a run"])
        for name, found in seconds.items():
            print(f"| {name} | {statistics.median(found):.2f} s | {statistics.median(found) / ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()
