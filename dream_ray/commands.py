"""The commands that take long, with their messages and exit codes: what `dream-ray` and the entry points in jobs/ share.

Contract: each returns 0, 1 (a stage failed), 2 (a setting cannot work) or 130 (stopped), and prints one paragraph where it
fails. Heavy imports (Ray, torch) happen after the settings are checked, so that a typing error costs seconds.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

from dream_ray import files
from dream_ray.config import ConfigError, load_config

if TYPE_CHECKING:
    from dream_ray.config import Config
    from dream_ray.pipeline.driver import Result
    from dream_ray.pipeline.reporting import Written
    from dream_ray.pipeline.run import Run

OK, FAILED, UNUSABLE, STOPPED = 0, 1, 2, 130

WORKING_DIR_COPY = "/runtime_resources/working_dir_files/"
"""Part of the path of the folder in which Ray runs a submitted job."""


def run_loop(config_path: str, overrides: list[str], run_dir: str | None) -> int:
    """The loop with its messages; the exit code. Called by `dream-ray run` and by jobs/rlaif.py."""
    start = time.monotonic()

    def loop(current: "Run", scorer_url: Callable[[], str]) -> Callable[[], None]:
        from dream_ray.pipeline.driver import align
        from dream_ray.pipeline.reporting import write_policy, write_report

        result = align(current, scorer_url)
        write_policy(current.store, result.standing)
        page = write_report(current.store.uri)
        return lambda: _print_result(current, result, page, time.monotonic() - start)

    return run_job(config_path, overrides, run_dir, loop)


def run_job(
    config_path: str,
    overrides: list[str],
    run_dir: str | None,
    work: "Callable[[Run, Callable[[], str]], Callable[[], None]]",
) -> int:
    """Check the settings, connect to Ray, do the work on the run and say how it ended; the exit code.

    `work` gets the run and what starts the scorer, and returns what prints its result once Ray is gone.
    """
    _prepare_process()
    try:
        config = load_config(config_path, overrides)
        target = run_directory(config, run_dir)
        _require_lasting(target)
        from dream_ray.pipeline import preflight

        preflight.check(config)
        preflight.check_cache(config)
    except ConfigError as error:
        complain(error)
        return UNUSABLE

    from dream_ray.pipeline.attempt import attempt
    from dream_ray.pipeline.cluster import connected, scorer
    from dream_ray.pipeline.run import Run

    def carry_out() -> Callable[[], None]:
        current = Run(config, target)
        with attempt(current.store, config), connected(config), scorer(current) as scorer_url:
            return work(current, scorer_url)

    return _ended(carry_out, target)


def _ended(carry_out: Callable[[], Callable[[], None]], target: str) -> int:
    """Do the work of an attempt at `target`, print what it gives to print, or say how it failed; the exit code."""
    from dream_ray.pipeline.lease import LeaseLost
    from dream_ray.pipeline.parts import StageFailed

    try:
        tell = carry_out()
    except ConfigError as error:
        complain(error)
        return UNUSABLE
    except (StageFailed, LeaseLost) as error:
        complain(error)
        return FAILED
    except OSError as error:
        if not files.is_of_storage(error):
            raise
        complain(files.explain(error))
        return FAILED
    except KeyboardInterrupt:
        print(f"Stopped. What is done stays in {target}; run the same command again to go on.", file=sys.stderr)
        return STOPPED
    tell()
    return OK


def evaluate_policies(
    config_path: str, overrides: list[str], policies: list[str], benchmarks: str | None, run_dir: str | None
) -> int:
    """Policies on benchmarks with its messages; the exit code."""
    _prepare_process()
    try:
        config = load_config(config_path, overrides)
        target = run_dir or files.join(config.run_dir or f"runs/{config.name}", "evaluate")
        _require_lasting(target)
        from dream_ray.pipeline import evaluation
        from dream_ray.pipeline.store import RunStore

        plan = evaluation.plan(config, policies, benchmarks)
    except ConfigError as error:
        complain(error)
        return UNUSABLE

    from dream_ray.evaluate.benchmark_table import render_benchmarks
    from dream_ray.pipeline.attempt import attempt
    from dream_ray.pipeline.cluster import connected

    def carry_out() -> Callable[[], None]:
        with attempt(RunStore(target), plan.config), connected(plan.config):
            measured, page = evaluation.carry_out(plan, target)

        def tell() -> None:
            console = make_console()
            console.print(render_benchmarks(measured.metrics, measured.comparisons))
            console.print(f"judge: {evaluation.judge_name(plan.config)}", highlight=False)
            print_page("report", page.uri, page.size)

        return tell

    return _ended(carry_out, target)


def serve_scorer(config_path: str, overrides: list[str]) -> int:
    """`dream-ray serve`: start, say where, wait for Ctrl-C or SIGTERM, take everything down; the exit code."""
    _prepare_process()
    from dream_ray.pipeline import service

    try:
        config = load_config(config_path, overrides)
        service.check(config)
    except ConfigError as error:
        complain(error)
        return UNUSABLE

    from dream_ray.pipeline.cluster import connected
    from dream_ray.pipeline.run import Run

    print("Starting; a judge model of one's own takes a minute or more.", flush=True)
    try:
        with connected(config), service.service(Run(config, run_directory(config, None))) as running:
            print(service.describe(running, config.judge.token_env), flush=True)
            threading.Event().wait()
    except RuntimeError as error:
        complain(error)
        return FAILED
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
    return OK


def run_directory(config: "Config", run_dir: str | None) -> str:
    """The run directory: the command's, else the config's, else runs/<name>."""
    return run_dir or config.run_dir or f"runs/{config.name}"


def _require_lasting(target: str) -> None:
    """Raise ConfigError for results in the copy of the working directory that Ray makes for a submitted job."""
    if WORKING_DIR_COPY in os.getcwd() and files.is_local(target) and WORKING_DIR_COPY in files.resolve(target)[1]:
        raise ConfigError(
            f"The run directory {target!r} would lie in the copy of the working directory that Ray made for this job on one "
            "machine, which other machines do not see and Ray removes. Set run_dir, or --run-dir, to a bucket (s3://, gs://) "
            "or to the absolute path of a folder that every machine has mounted."
        )


def _print_result(current: "Run", result: "Result", page: "Written", seconds: float) -> None:
    """Where the time and the memory went, the rounds and the numbers, as tables."""
    from rich.table import Table

    from dream_ray.evaluate.benchmark_table import render_benchmarks
    from dream_ray.evaluate.table import render_table
    from dream_ray.pipeline.payments import ledger_uri, paid_before, run_is_paid

    console = make_console()
    times = Table(title="where time, memory (of all processes together) and money went", title_justify="left")
    for column in (
        "stages",
        "rows",
        "failed",
        "tokens in",
        "cached",
        "out",
        "cost",
        "paid",
        "seconds",
        "GPU s",
        "idle",
        "GiB",
    ):
        times.add_column(column, justify="left" if column == "stages" else "right")
    shown: set[str] = set()
    for done in current.history:
        if done.ref.key in shown:
            continue
        together = (done.ref.key, *done.manifest.passed_with)
        shown |= set(together)
        manifest = done.manifest
        peak = manifest.peak_memory_bytes
        # Tokens and cost are those of the questions asked: the student's own tokens cost nobody.
        asked = [other.manifest for other in current.history if other.ref.key in together and other.manifest.chat]
        times.add_row(
            "\n".join(together),
            str(manifest.rows_out),
            str(manifest.failed),
            f"{sum(item.prompt_tokens for item in asked):,}",
            f"{sum(item.cached_tokens for item in asked):,}",
            f"{sum(item.completion_tokens for item in asked):,}",
            f"${sum(item.cost_usd for item in asked):.2f}",
            f"${manifest.paid_usd:.2f}",
            f"{manifest.seconds:.0f}",
            f"{manifest.gpu_held_s:.0f}" if manifest.gpu_held_s else "-",
            f"{manifest.gpu_idle_s / manifest.gpu_held_s:.0%}" if manifest.gpu_held_s else "-",
            "-" if peak is None else f"{peak / 2**30:.1f}",
        )
    console.print(times)
    if run_is_paid(current.config):
        paid = sum(paid_before(ledger_uri(current.store.uri)).values())
        console.print(f"paid for teacher and judge, over all attempts: ${paid:.2f}", highlight=False)
    metrics = [metric for metrics in result.metrics.values() for metric in metrics]
    console.print(render_table(metrics))
    console.print(render_benchmarks(metrics, result.comparisons))
    for round_row in result.rounds:
        console.print(f"round {round_row.number}: {round_row.reason}", highlight=False)
    console.print(
        f"final policy: {result.standing.name} ({result.standing.adapter or result.standing.model})", soft_wrap=True
    )
    print_page("report", page.uri, page.size)
    console.print(f"{seconds:.0f} s in all", highlight=False)


def make_console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120)


def print_page(name: str, uri: str, size: int) -> None:
    from dream_ray.evaluate.page import format_size

    place = files.resolve(uri)[1] if files.is_local(uri) else uri
    make_console().print(f"{name}: {place} ({format_size(size)})", soft_wrap=True, highlight=False)


def complain(error: Exception | str) -> None:
    Console(stderr=True).print(str(error), style="red", soft_wrap=True, markup=False, highlight=False)


def _prepare_process() -> None:
    """Progress on stdout, the libraries' own left out, and SIGTERM as Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    for name in ("httpx", "httpcore", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _as_interrupt)


def _as_interrupt(signum: int, frame: object) -> None:
    """A spot machine's SIGTERM ends a run as Ctrl-C does: cleanly and resumable."""
    raise KeyboardInterrupt
