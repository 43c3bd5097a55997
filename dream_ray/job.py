"""What the entry points in jobs/ share: the command line, and a stage carried out alone.

Contract: the same config, overrides and run directory as `dream-ray run`, and its exit codes. Heavy imports happen after the
settings are checked.
"""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from dream_ray.commands import run_job

if TYPE_CHECKING:
    from dream_ray.pipeline.run import Done, Run

Stage = Literal["disentangle", "sft", "rollout", "dpo"]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments of every job: --config, --run-dir and key=value."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--config", required=True, help="YAML file; configs/ has examples")
    made.add_argument("--run-dir", help="where results live: a folder, s3:// or gs://; the config's run_dir unless set")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="settings, dotted, e.g. rollout.k=4")
    return made


def round_parser(description: str | None) -> argparse.ArgumentParser:
    """`parser` with --round."""
    made = parser(description)
    made.add_argument("--round", type=_round, default=1, metavar="N", help="which round, from 1 (default: %(default)s)")
    return made


def run_stage(stage: Stage, arguments: argparse.Namespace) -> int:
    """Carry out a stage with those before it, then stop; the exit code. Rounds are read from `arguments.round`."""

    def work(run: "Run", scorer_url: Callable[[], str]) -> Callable[[], None]:
        from dream_ray.pipeline import alone

        if stage == "disentangle":
            done = [alone.disentangle(run)]
        elif stage == "sft":
            done = [alone.sft(run)]
        elif stage == "rollout":
            sampled = alone.rollout(run, arguments.round, scorer_url)
            done = [sampled.rollouts, sampled.judgements]
        else:
            done = [alone.dpo(run, arguments.round, scorer_url)]
        return lambda: _tell(done)

    return run_job(arguments.config, arguments.overrides, arguments.run_dir, work)


def _tell(stages: "list[Done]") -> None:
    for done in stages:
        print(f"{done.ref.key}: {done.manifest.rows_out} rows, {done.manifest.failed} failed, in {done.ref.uri}")


def _round(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no round: rounds are counted from 1")
    return int(text)
