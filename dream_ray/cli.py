"""The command line. Every command says what it did, exits 0, 1 (a stage failed), 2 (a setting cannot work) or 130.

Contract: parses, calls, prints; no logic of its own. Heavy imports (Ray, torch) happen after the settings are checked, so
that a typing error costs seconds.
"""

import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dream_ray import files
from dream_ray.config import ConfigError, load_config

if TYPE_CHECKING:
    from dream_ray.pipeline.driver import Result
    from dream_ray.pipeline.run import Run

app = typer.Typer(
    help="Safety alignment of multimodal LLMs by the DREAM method, on Ray.\n\n"
    "On a laptop: `dream-ray student build/student`, `dream-ray demo-prompts build/demo`, then "
    "`dream-ray run configs/local.yaml`. The run can be stopped at any time; the same command goes on.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

OK, FAILED, UNUSABLE, STOPPED = 0, 1, 2, 130


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML file; configs/ has examples.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, dotted.")] = None,
    run_dir: Annotated[str | None, typer.Option(help="Where results live: a folder, s3:// or gs://.")] = None,
) -> None:
    """Run the loop, or go on with it where it ended.

    Example: dream-ray run configs/local.yaml rounds=1 rollout.k=4 --run-dir runs/try
    """
    raise typer.Exit(run_loop(str(config), overrides or [], run_dir))


@app.command()
def student(
    folder: Annotated[Path, typer.Argument(help="Where the model goes.")],
    seed: Annotated[int, typer.Option(help="Of the random vision tower.")] = 0,
) -> None:
    """Build the local student: SmolLM2-135M-Instruct under the SmolVLM architecture, with an untrained vision tower."""
    from dream_ray.train.local_student import build_local_student

    print(f"student: {build_local_student(folder, seed)}")


@app.command("demo-prompts")
def demo_prompts(folder: Annotated[Path, typer.Argument(help="Where the prompts and pictures go.")]) -> None:
    """Write the demo prompts: mild, generated, the same every time."""
    from dream_ray.sources.demo import write_demo

    print(f"prompts: {write_demo(folder)}")


@app.command()
def evaluate(
    config: Annotated[Path, typer.Argument(help="YAML file: student, engine and judge.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, dotted.")] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Run directory, model folder or adapter folder; the config's student unless given. Given again, the "
            "later ones are compared with the first."
        ),
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(metavar="NAME[=PATH],...", help="Those of the config unless given; PATH is the data.")
    ] = None,
    run_dir: Annotated[str | None, typer.Option(help="Where results live; <run_dir>/evaluate unless given.")] = None,
) -> None:
    """Measure policies on benchmarks.

    Example: dream-ray evaluate configs/local.yaml --policy runs/local --benchmark xstest=data/xstest
    """
    raise typer.Exit(evaluate_policies(str(config), overrides or [], policy or [], benchmark, run_dir))


def evaluate_policies(
    config_path: str, overrides: list[str], policies: list[str], benchmarks: str | None, run_dir: str | None
) -> int:
    """Policies on benchmarks with its messages; the exit code."""
    _log_to_stdout()
    try:
        config = load_config(config_path, overrides)
        target = run_dir or files.join(config.run_dir or f"runs/{config.name}", "evaluate")
        from dream_ray.pipeline import evaluation
        from dream_ray.pipeline.store import RunStore

        plan = evaluation.plan(config, policies, benchmarks)
        RunStore(target).claim(plan.config)
    except ConfigError as error:
        Console(stderr=True).print(str(error), style="red", soft_wrap=True, markup=False, highlight=False)
        return UNUSABLE

    from dream_ray.evaluate.benchmark_table import render_benchmarks
    from dream_ray.pipeline.cluster import connected
    from dream_ray.pipeline.parts import StageFailed

    try:
        with connected(plan.config):
            measured, path = evaluation.carry_out(plan, target)
    except StageFailed as error:
        Console(stderr=True).print(str(error), style="red", soft_wrap=True, markup=False, highlight=False)
        return FAILED
    except KeyboardInterrupt:
        print(f"Stopped. What is done stays in {target}; run the same command again to go on.", file=sys.stderr)
        return STOPPED
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(render_benchmarks(measured.metrics, measured.comparisons))
    console.print(f"judge: {evaluation.judge_name(plan.config)}", highlight=False)
    console.print(f"numbers: {path}", soft_wrap=True, highlight=False)
    return OK


@app.command()
def sources(
    form: Annotated[str | None, typer.Argument(metavar="[FORMAT]", help="A format, to check a folder as it.")] = None,
    path: Annotated[str | None, typer.Argument(help="The folder or file.")] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Other keys of the source.")
    ] = None,
) -> None:
    """List the formats that prompts are read from, or check a folder and count what it holds.

    Example: dream-ray sources vlguard /data/vlguard image_folder=/data/vlguard/train
    """
    raise typer.Exit(check_source(form, path, settings or []))


def check_source(form: str | None, path: str | None, settings: list[str]) -> int:
    """Print the formats, or what a source holds; the exit code: FAILED where it is not what was published."""
    from dream_ray.config import load_source
    from dream_ray.sources.report import print_formats, print_survey
    from dream_ray.sources.survey import survey

    console = Console(width=None if sys.stdout.isatty() else 120)
    if form is None or path is None:
        print_formats(console, form)
        return OK
    try:
        source = load_source(form, path, settings)
        found = survey(source)
    except ConfigError as error:
        Console(stderr=True).print(str(error), style="red", soft_wrap=True, markup=False, highlight=False)
        return UNUSABLE
    print_survey(console, source, found)
    return FAILED if found.prompts == 0 or (found.complaints and not source.partial) else OK


def _log_to_stdout() -> None:
    """Progress lines on stdout, and a SIGTERM that ends the command as Ctrl-C does."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    for name in ("httpx", "httpcore", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _as_interrupt)


def run_loop(config_path: str, overrides: list[str], run_dir: str | None) -> int:
    """The loop with its messages; the exit code. Called by `dream-ray run` and by jobs/rlaif.py."""
    _log_to_stdout()
    start = time.monotonic()
    try:
        config = load_config(config_path, overrides)
        target = run_dir or config.run_dir or f"runs/{config.name}"
        from dream_ray.pipeline import preflight
        from dream_ray.pipeline.store import RunStore

        preflight.check(config)
        RunStore(target).claim(config)
    except ConfigError as error:
        Console(stderr=True).print(str(error), style="red", soft_wrap=True, markup=False, highlight=False)
        return UNUSABLE

    from dream_ray.pipeline.cluster import connected, scorer
    from dream_ray.pipeline.driver import align
    from dream_ray.pipeline.parts import StageFailed
    from dream_ray.pipeline.reporting import write_report
    from dream_ray.pipeline.run import Run

    try:
        current = Run(config, target)
        with connected(config), scorer(current) as scorer_url:
            result = align(current, scorer_url)
            report = write_report(current, result)
    except StageFailed as error:
        Console(stderr=True).print(str(error), style="red", soft_wrap=True, markup=False, highlight=False)
        return FAILED
    except KeyboardInterrupt:
        print(f"Stopped. What is done stays in {target}; run the same command again to go on.", file=sys.stderr)
        return STOPPED
    _print_result(current, result, report, time.monotonic() - start)
    return OK


def _print_result(current: "Run", result: "Result", report: str, seconds: float) -> None:
    """Where the time and the memory went, the rounds and the numbers, as tables."""
    from rich.table import Table

    from dream_ray.evaluate.benchmark_table import render_benchmarks
    from dream_ray.evaluate.table import render_table

    console = Console(width=None if sys.stdout.isatty() else 120)
    times = Table(title="where the time and the memory (of all processes together) went", title_justify="left")
    for column in ("stages", "rows", "failed", "seconds", "GiB"):
        times.add_column(column, justify="left" if column == "stages" else "right")
    shown: set[str] = set()
    for done in current.history:
        if done.ref.key in shown:
            continue
        together = (done.ref.key, *done.manifest.passed_with)
        shown |= set(together)
        rows = str(done.manifest.rows_out)
        peak = done.manifest.peak_memory_bytes
        times.add_row(
            "\n".join(together),
            rows,
            str(done.manifest.failed),
            f"{done.manifest.seconds:.0f}",
            "-" if peak is None else f"{peak / 2**30:.1f}",
        )
    console.print(times)
    metrics = [metric for metrics in result.metrics.values() for metric in metrics]
    console.print(render_table(metrics))
    console.print(render_benchmarks(metrics, result.comparisons))
    for round_row in result.rounds:
        console.print(f"round {round_row.number}: {round_row.reason}", highlight=False)
    console.print(
        f"final policy: {result.standing.name} ({result.standing.adapter or result.standing.model})", soft_wrap=True
    )
    console.print(
        f"report: {files.resolve(report)[1] if files.is_local(report) else report} ({seconds:.0f} s)", soft_wrap=True
    )


def _as_interrupt(signum: int, frame: object) -> None:
    """A spot machine's SIGTERM ends a run as Ctrl-C does: cleanly and resumable."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    app()
