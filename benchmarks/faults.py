"""What faults cost: a small run is disturbed at a random moment, over and over, and compared with one that is not.

    python benchmarks/faults.py [--faults 50] [--seed 0] [--run-dir runs/faults] [--student FOLDER] [key=value …]

Each fault has a run of its own, from nothing to the report; where the fault ends the driver, the same command is given
again. The rows of every stage, as sets, and the metrics have to be those of the undisturbed run. Prints a table as it
goes; exits with 1 where a row was lost, doubled or changed. Linux only: victims are found among the driver's processes.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from dream_ray.sources.demo import write_demo
from dream_ray.train.local_student import build_local_student

ROOT = Path(__file__).parent.parent
SMALL = [
    "rounds=1", "part_rows=2", "rollout.k=2", "rollout.max_tokens=12", "rollout.share=1", "rollout.dtype=float32",
    "sft.epochs=2", "sft.batch_size=4", "sft.micro_batch_size=4", "dpo.epochs=2", "dpo.batch_size=2",
    "dpo.micro_batch_size=2", "pairs.margin=0.01", "pairs.max_length_ratio=50", "pairs.max_risk_ratio=50",
    "max_failure_rate=0.5",
]  # fmt: skip
"""A run of some minutes. In float32 a sampled token does not depend on what else is in the engine."""
ATTEMPTS = 4
SECONDS_PER_ATTEMPT = 1200


@dataclass(frozen=True)
class Kind:
    """A fault: which process gets which signal. `victim` begins its name, "" is the driver; `stages` are where it is to be
    found."""

    name: str
    victim: str
    signal: signal.Signals
    stages: tuple[str, ...]


ASKING = ("disentangle", "demonstrate", "base/answers", "round-1/rollout", "policy-1/answers")
KINDS = (
    Kind("driver killed", "", signal.SIGKILL, ("",)),
    Kind("driver told to end (SIGTERM)", "", signal.SIGTERM, ("",)),
    Kind("teacher, sampler or judge client killed", "ray::MapWorker", signal.SIGKILL, ASKING),
    Kind("scorer's replica killed", "ray::ServeReplica", signal.SIGKILL, ASKING[2:]),
    Kind("Serve's controller killed", "ray::ServeController", signal.SIGKILL, ASKING[2:]),
    Kind("training worker killed", "ray::RayTrainWorker", signal.SIGKILL, ("sft", "round-1/dpo")),
)


@dataclass(frozen=True)
class Step:
    """Stages that run together, and for how many seconds they did when nothing was disturbed."""

    keys: str
    seconds: float


@dataclass
class Found:
    """What came of a fault. `struck` is None where there was nothing to strike at that moment."""

    struck: str | None
    prompts: int
    attempts: int
    seconds: float
    end_seconds: float | None = None


def steps_of(run: Path) -> list[Step]:
    """The steps of a finished run, from its log."""
    lines = [json.loads(line) for line in (run / "logs" / "attempt-1.jsonl").read_text().splitlines()]
    begun = [line for line in lines if line["message"].endswith(": started") and line["stage"]]
    times = [datetime.fromisoformat(line["time"]).timestamp() for line in [*begun, lines[-1]]]
    return [Step(line["stage"], after - before) for line, before, after in zip(begun, times, times[1:], strict=True)]


def rows_of(run: Path) -> Counter[str]:
    """All rows of all finished stages, with the stage and kind that they belong to; the run's own place is taken out."""
    found: Counter[str] = Counter()
    for manifest in run.glob("stages/**/manifest.json"):
        for kind in ("data", "errors"):
            for path in sorted((manifest.parent / kind).glob("*.parquet")):
                key = (manifest.parent / kind).relative_to(run).as_posix()
                for row in pq.read_table(path).to_pylist():
                    found[key + json.dumps(row, sort_keys=True).replace(str(run), "")] += 1
    return found


def prompts_in_flight(run: Path) -> int:
    """Prompts of the parts that are in an actor now."""
    rows = {path.stem: path for path in run.glob("stages/ingest/*/data/*.parquet")}
    parts = [path.stem for path in run.glob("in_flight/**/*.json")]
    return sum(pq.read_metadata(rows[part]).num_rows for part in parts if part in rows)


def start(run: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """The driver; what it says is added to the run's output.log."""
    command = [sys.executable, str(ROOT / "jobs" / "rlaif.py"), "--run-dir", str(run), *arguments]
    with (run.parent / f"{run.name}.log").open("ab") as log:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=environment)


def victims(driver: psutil.Process, name: str) -> list[psutil.Process]:
    """The driver's processes whose title begins so."""
    found = []
    for process in driver.children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(name):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(step: Step, run: Path, driver: subprocess.Popen[bytes]) -> bool:
    """True once the step has begun, False where the driver ended before."""
    log = run / "logs" / "attempt-1.jsonl"
    words = json.dumps(f"{step.keys}: started")
    while driver.poll() is None:
        if log.exists() and words in log.read_text():
            return True
        time.sleep(0.05)
    return False


def strike(
    kind: Kind, step: Step, delay: float, run: Path, driver: subprocess.Popen[bytes], draw: random.Random
) -> int:
    """Wait for the moment and send the signal; prompts in flight then, -1 where there was no victim while the driver
    lived."""
    if not wait_for(step, run, driver):
        return -1
    time.sleep(delay)
    while driver.poll() is None:
        found = [psutil.Process(driver.pid)] if not kind.victim else victims(psutil.Process(driver.pid), kind.victim)
        if found:
            flying = prompts_in_flight(run)
            draw.choice(found).send_signal(kind.signal)
            return flying
        time.sleep(0.2)
    return -1


def disturb(kind: Kind, step: Step, delay: float, run: Path, arguments: list[str], draw: random.Random) -> Found:
    """One run with one fault, to its end."""
    begun = time.monotonic()
    driver = start(run, arguments)
    prompts = strike(kind, step, delay, run, driver, draw)
    at = time.monotonic()
    code = driver.wait(timeout=SECONDS_PER_ATTEMPT)
    end_seconds = time.monotonic() - at if not kind.victim else None
    attempts = 1
    while code != 0 and attempts < ATTEMPTS:
        attempts += 1
        code = start(run, arguments).wait(timeout=SECONDS_PER_ATTEMPT)
    if code != 0:
        raise RuntimeError(f"{kind.name} in {step.keys}: the run does not end; see {run}.log")
    struck = None if prompts < 0 else f"{step.keys}, after {delay:.0f} s"
    return Found(struck, max(prompts, 0), attempts, time.monotonic() - begun, end_seconds)


def moments(steps: list[Step], count: int, draw: random.Random) -> Iterator[tuple[Kind, Step, float]]:
    """Kinds in turn, each at a random moment of the steps where it can strike; long steps are met more often."""
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        fit = [step for step in steps if any(key.startswith(kind.stages) for key in step.keys.split(", "))]
        (step,) = draw.choices(fit, weights=[step.seconds for step in fit])
        yield kind, step, draw.uniform(0, step.seconds)


HEAD = (
    "| what | when | prompts in flight | rows lost | doubled or changed | metrics | attempts | driver ended in | longer by |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def main() -> int:
    """Run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/faults"))
    parser.add_argument("--student", type=Path, help="the demo's unless given")
    parser.add_argument("--config", default=str(ROOT / "configs" / "local.yaml"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args()

    folder = given.run_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    student = given.student or build_local_student(ROOT / "build" / "student")
    source = f"sources=[{{path: {few_prompts(folder)}, name: few}}]"
    arguments = ["--config", given.config, *SMALL, f"student.model={student}", source, *given.overrides]

    undisturbed = folder / "undisturbed"
    begun = time.monotonic()
    if start(undisturbed, arguments).wait(timeout=SECONDS_PER_ATTEMPT):
        raise RuntimeError(f"The undisturbed run failed; see {undisturbed}.log")
    usual = time.monotonic() - begun
    expected, metrics = rows_of(undisturbed), (undisturbed / "metrics.csv").read_text()
    print(f"undisturbed: {expected.total()} rows in {usual:.0f} s\n\n{HEAD}", flush=True)

    draw, wrong = random.Random(given.seed), 0
    for number, (kind, step, delay) in enumerate(moments(steps_of(undisturbed), given.faults, draw)):
        run = folder / f"fault-{number}"
        shutil.rmtree(run, ignore_errors=True)
        found = disturb(kind, step, delay, run, arguments, draw)
        rows = rows_of(run)
        lost, more = (expected - rows).total(), (rows - expected).total()
        same = (run / "metrics.csv").read_text() == metrics
        wrong += bool(lost or more or not same)
        ended = "-" if found.end_seconds is None else f"{found.end_seconds:.1f} s"
        cells = (
            kind.name, found.struck or "nothing to strike", found.prompts, lost, more, "same" if same else "DIFFERENT",
            found.attempts, ended, f"{found.seconds - usual:+.0f} s",
        )  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    print(f"\n{given.faults - wrong} of {given.faults} runs gave what the undisturbed one gave")
    return int(wrong > 0)


def few_prompts(folder: Path) -> Path:
    """A few demo prompts of each split and kind."""
    lines = [json.loads(line) for line in write_demo(folder / "demo").read_text().splitlines()]
    chosen = []
    for split, per_kind in (("train", 6), ("dev", 3), ("held_out", 3)):
        for risk in ("risky", "benign"):
            chosen += [line for line in lines if (line["split"], line["risk"]) == (split, risk)][:per_kind]
    path = folder / "demo" / "few.jsonl"
    path.write_text("\n".join(map(json.dumps, chosen)) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
