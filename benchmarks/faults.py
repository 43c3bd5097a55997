"""What faults cost: a small run is disturbed at a random moment, over and over, and compared with one that is not.

    python benchmarks/faults.py [--faults 50] [--first 0] [--seed 0] [--only NAME …] [--step NAME] [--run-dir runs/faults]
                                [--student FOLDER] [key=value …]
    python benchmarks/faults.py --list

The undisturbed run goes from the prompts to the report: all stages of the loop with their real engines and training, a
judge behind an endpoint that answers by rule. For each fault the finished run is set back to before one of its steps
(stages that run together), and the command is given again; during the step the fault strikes, and where it ends the
driver, the same command is given once more. The rows of the stages, as sets, the adapters, byte by byte, and the metrics
have to be those of the undisturbed run. What follows from equal rows and adapters is taken as it is, so that a fault costs
a minute.

Prints a table as it goes and exits with 1 where a row was lost, doubled or changed; fault-N-rows.txt in the run directory
says which. Linux only: victims are found among the driver's processes; the disk fills up in a tmpfs, which takes the right
to mount one. `--first` goes on with a later fault of the same seed. A second call finds the undisturbed run of the first.
"""

import argparse
import hashlib
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

import pyarrow.parquet as pq
from faults_kinds import KINDS, PORT, Judge, Kind, Scene, ThreeNodes, small_disk

from dream_ray.pipeline.guard import UNSEEN
from dream_ray.sources.demo import write_demo
from dream_ray.train.local_student import build_local_student

ROOT = Path(__file__).parent.parent
JUDGE = (
    f"{{backend: openai, model: {Judge.model}, base_url: 'http://127.0.0.1:{PORT}/v1', api_key_env: '', timeout_s: 30}}"
)
SMALL = [
    "rounds=1", "part_rows=2", "max_failure_rate=0", f"judge.chat={JUDGE}",
    "rollout.k=2", "rollout.max_tokens=12", "rollout.share=1", "rollout.dtype=float32", "rollout.adapters=request",
    "sft.epochs=2", "sft.batch_size=2", "sft.micro_batch_size=2", "dpo.epochs=2", "dpo.batch_size=2",
    "dpo.micro_batch_size=2", "pairs.margin=0.01", "pairs.max_length_ratio=50", "pairs.max_shift_ratio=50",
]  # fmt: skip
"""A run of a few minutes. In float32 a sampled token does not depend on what else is in the engine; no row may fail, so that
one that did is done again instead of being left out."""
ATTEMPTS = 4
SECONDS_PER_ATTEMPT = 400


@dataclass(frozen=True)
class Step:
    """Stages that run together, and for how many seconds they did when nothing was disturbed."""

    keys: tuple[str, ...]
    seconds: float

    @property
    def name(self) -> str:
        """The first of its stages."""
        return self.keys[0]


@dataclass(frozen=True)
class Fault:
    """What is to happen when."""

    number: int
    kind: Kind
    step: Step
    delay: float


@dataclass
class Found:
    """What came of a fault. `struck` is None where there was nothing to strike; `end_seconds` is how long the driver took to
    end after its signal, `longer` how much later the step was finished than without the fault."""

    struck: str | None
    attempts: int
    redone: int
    longer: float
    end_seconds: float | None


def steps_of(run: Path) -> list[Step]:
    """The steps of a run that one attempt finished, from its log."""
    lines = [json.loads(line) for line in (run / "logs" / "attempt-1.jsonl").read_text().splitlines()]
    begun = [line for line in lines if line["message"].endswith(": started") and line["stage"]]
    times = [datetime.fromisoformat(line["time"]).timestamp() for line in [*begun, lines[-1]]]
    return [
        Step(tuple(line["stage"].split(", ")), max(after - before, 1.0))
        for line, before, after in zip(begun, times[:-1], times[1:], strict=True)
    ]


def results_of(run: Path) -> Counter[str]:
    """All rows of all finished stages, and their adapters, with the stage that they belong to. Of what training said of itself
    at each step, all but how fast it was."""
    found: Counter[str] = Counter()
    for manifest in run.glob("stages/**/manifest.json"):
        stage = manifest.parent
        for kind in ("data", "errors"):
            for path in stage.glob(f"{kind}/*.parquet"):
                for row in pq.read_table(path).to_pylist():
                    if row.get("name") == "tokens_per_second":
                        continue
                    found[f"{stage.relative_to(run)} {kind} {json.dumps(row, sort_keys=True)}"] += 1
        for path in stage.glob("adapter/*.safetensors"):
            found[f"{stage.relative_to(run)} adapter {hashlib.sha256(path.read_bytes()).hexdigest()}"] += 1
    return found


def set_back(run: Path, kept: Path, step: Step) -> None:
    """Make `run` the finished run without one step: as if an attempt had ended before it. Replies of the judge go, too."""
    for path in run.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(kept, run, dirs_exist_ok=True, ignore=shutil.ignore_patterns("logs", "cache", "status.json"))
    for key in step.keys:
        shutil.rmtree(run / "stages" / key)


def rows_redone(run: Path, flights: Path) -> int:
    """Rows that were handed to a teacher or an engine more than once, counted each time."""
    rows = {path.stem: int(pq.read_metadata(path).num_rows) for path in run.glob("stages/ingest/*/data/*.parquet")}
    tries: Counter[str] = Counter()
    alone = 0
    for line in flights.read_text().splitlines() if flights.exists() else ():
        job, name, content = line.split("\t")
        flight = json.loads(content)
        if flight["killed"]:
            alone += flight["killed"][-1][1] == UNSEEN  # any other word was added when it had died
        else:
            tries[f"{job}/{name.removesuffix('.json')}"] += not flight["told"]
    return alone + sum(rows[part.rsplit("/", 1)[1]] * (count - 1) for part, count in tries.items())


def start(run: Path, log: Path, control: Path, arguments: list[str], address: str | None) -> subprocess.Popen[bytes]:
    """The driver; what it says is added to the log."""
    command = [sys.executable, str(ROOT / "jobs" / "rlaif.py"), "--run-dir", str(run), *arguments]
    with log.open("ab") as stream:
        environment = environment_of(control) | ({} if address is None else {"RAY_ADDRESS": address})
        return subprocess.Popen(command, stdout=stream, stderr=stream, cwd=ROOT, env=environment)


def environment_of(control: Path) -> dict[str, str]:
    """What every process of a run gets."""
    path = os.pathsep.join((str(ROOT / "benchmarks" / "faults_inside"), str(ROOT)))
    return os.environ | {"PYTHONPATH": path, "DREAM_RAY_FAULTS": str(control)}


def wait_for(step: Step, scene: Scene) -> None:
    """Until the step has begun, or the driver ended."""
    log = scene.run / "logs" / "attempt-1.jsonl"
    words = json.dumps(f"{', '.join(step.keys)}: started")
    while not (scene.is_over or (log.exists() and words in log.read_text())):
        time.sleep(0.05)


def disturb(fault: Fault, folder: Path, arguments: list[str], judge: Judge, draw: random.Random) -> Found:
    """One run with one fault, to its end. Raises RuntimeError where it comes to none."""
    run, control, log = folder / "disk" / "run", folder / "control", folder / f"fault-{fault.number}.log"
    shutil.rmtree(control, ignore_errors=True)
    control.mkdir()
    log.unlink(missing_ok=True)
    if fault.kind.needs == "engine":
        (control / "engine").touch()
    set_back(run, folder / "kept", fault.step)
    os.environ.update(environment_of(control))  # nodes inherit it
    nodes = ThreeNodes() if fault.kind.needs == "nodes" else None
    address = None if nodes is None else nodes.address
    drivers = [start(run, log, control, arguments, address)]
    try:
        scene = Scene(run, control, drivers[0], judge, nodes, draw)
        wait_for(fault.step, scene)
        began = time.time()
        time.sleep(fault.delay)
        struck = fault.kind.strike(scene)
        at = time.time()
        codes = [_end(drivers[0], fault, log)]
        end_seconds = time.time() - at if fault.kind.ends_driver and struck else None
        while codes[-1] != 0 and len(codes) < ATTEMPTS:
            fault.kind.mend(scene)
            drivers.append(start(run, log, control, arguments, address))
            codes.append(_end(drivers[-1], fault, log))
        fault.kind.mend(scene)
    finally:
        if drivers[-1].poll() is None:
            drivers[-1].kill()
        if nodes is not None:
            nodes.end()
    if codes[-1] != 0:
        raise RuntimeError(f"{fault.kind.name} in {fault.step.name}: ended with {codes}; see {log}")
    finished = max(
        path.stat().st_mtime for key in fault.step.keys for path in run.glob(f"stages/{key}/*/manifest.json")
    )
    redone = rows_redone(run, control / "flights")
    return Found(struck, len(codes), redone, finished - began - fault.step.seconds, end_seconds)


def _end(driver: subprocess.Popen[bytes], fault: Fault, log: Path) -> int:
    try:
        return driver.wait(timeout=SECONDS_PER_ATTEMPT)
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"{fault.kind.name} in {fault.step.name}: not over in {SECONDS_PER_ATTEMPT} s; see {log}"
        ) from None


def faults_of(
    steps: list[Step], kinds: list[Kind], first: int, count: int, seed: int
) -> Iterator[tuple[Fault, random.Random]]:
    """Kinds in turn, each at a random moment of a random step where it can strike, with what it may still draw from."""
    for number in range(first, first + count):
        kind, draw = kinds[number % len(kinds)], random.Random(f"{seed}-{number}")
        fit = [step for step in steps if any(key.startswith(kind.stages) for key in step.keys)]
        if fit:
            step = draw.choice(fit)
            yield Fault(number, kind, step, draw.uniform(0, step.seconds)), draw


COLUMNS = (
    "", "what", "stage", "after", "attempts", "rows redone", "rows lost", "doubled or changed", "metrics", "driver ended in",
    "longer by",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def row_of(fault: Fault, found: Found, lost: int, more: int, same: bool) -> str:
    """A line of the table."""
    ended = "-" if found.end_seconds is None else f"{found.end_seconds:.1f} s"
    what = fault.kind.name if found.struck else f"{fault.kind.name}: nothing to strike"
    cells = (
        fault.number, what, fault.step.name, f"{fault.delay:.0f} of {fault.step.seconds:.0f} s", found.attempts,
        found.redone, lost, more, "same" if same else "DIFFERENT", ended, f"{found.longer:+.0f} s",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def undisturbed(folder: Path, arguments: list[str]) -> None:
    """Make the run that all others are compared with, in `kept`, unless an earlier call did with the same arguments."""
    kept, asked = folder / "kept", folder / "arguments.json"
    if asked.exists() and json.loads(asked.read_text()) == arguments:
        return
    run, control = folder / "disk" / "run", folder / "control"
    for left in (run, control, kept):
        shutil.rmtree(left, ignore_errors=True)
    control.mkdir()
    log = folder / "undisturbed.log"
    log.unlink(missing_ok=True)
    if start(run, log, control, arguments, None).wait(timeout=2 * SECONDS_PER_ATTEMPT):
        raise RuntimeError(f"The undisturbed run failed; see {log}")
    shutil.copytree(run, kept)
    asked.write_text(json.dumps(arguments))


def main() -> int:
    """Run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=[kind.name for kind in KINDS], help="these faults, in turn")
    parser.add_argument("--step", help="the step with this stage")
    parser.add_argument("--list", action="store_true", help="say which faults there are, and where")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/faults"))
    parser.add_argument("--student", type=Path, help="the demo's unless given")
    parser.add_argument("--config", default=str(ROOT / "configs" / "local.yaml"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args()
    if given.list:
        for kind in KINDS:
            print(f"{kind.name}: {', '.join(kind.stages) if any(kind.stages) else 'every stage'}")
        return 0

    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # so that nothing is left running or mounted
    folder = given.run_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    student = given.student or build_local_student(ROOT / "build" / "student")
    source = f"sources=[{{path: {few_prompts(folder)}, name: few, observations: use}}]"
    arguments = ["--config", given.config, *SMALL, f"student.model={student.absolute()}", source, *given.overrides]
    judge, wrong = Judge(), 0
    with small_disk(folder / "disk") as fills_up:
        (folder / "disk" / "run").mkdir(exist_ok=True)
        undisturbed(folder, arguments)
        expected, metrics = results_of(folder / "kept"), (folder / "kept" / "metrics.csv").read_text()
        kinds = [kind for kind in KINDS if given.only is None or kind.name in given.only]
        if not fills_up:
            print("no right to mount a tmpfs: no disk will be full")
            kinds = [kind for kind in kinds if kind.needs != "disk"]
        steps = [step for step in steps_of(folder / "kept") if given.step is None or given.step in step.keys]
        print(f"undisturbed: {expected.total()} rows and adapters\n\n{HEAD}", flush=True)
        for fault, draw in faults_of(steps, kinds, given.first, given.faults, given.seed):
            try:
                found = disturb(fault, folder, arguments, judge, draw)
            except RuntimeError as error:
                wrong += 1
                print(f"| {fault.number} | {error} |", flush=True)
                continue
            results = results_of(folder / "disk" / "run")
            missing, strange = expected - results, results - expected
            lost, more = missing.total(), strange.total()
            if lost or more:
                lines = [f"{sign} {row}" for sign, rows in (("-", missing), ("+", strange)) for row in sorted(rows)]
                (folder / f"fault-{fault.number}-rows.txt").write_text("\n".join(lines))
            same = (folder / "disk" / "run" / "metrics.csv").read_text() == metrics
            wrong += bool(lost or more or not same)
            print(row_of(fault, found, lost, more, same), flush=True)
    print(f"\n{wrong} of {given.faults} runs gave something else than the undisturbed one")
    return int(wrong > 0)


def few_prompts(folder: Path) -> Path:
    """A few demo prompts of each split and kind: with words only, and one with a picture."""
    lines = [json.loads(line) for line in write_demo(folder / "demo").read_text().splitlines()]
    chosen = []
    for split, per_kind in (("train", 5), ("dev", 2), ("held_out", 2)):
        mine = [line for line in lines if line["split"] == split]
        words = [line for line in mine if not line["turns"][0].get("images")]
        for risk in ("risky", "benign"):
            chosen += [line for line in words if line["risk"] == risk][:per_kind]
        chosen += [line for line in mine if line not in words and line["risk"] == "benign"][:1]
    path = folder / "demo" / "few.jsonl"
    path.write_text("\n".join(map(json.dumps, chosen)) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
