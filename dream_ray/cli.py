"""The command line. Every command says what it did, exits 0, 1 (a stage failed), 2 (a setting cannot work) or 130.

Contract: parses, calls, prints; no logic of its own. Heavy imports (Ray, torch) happen after the settings are checked, so
that a typing error costs seconds.
"""

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dream_ray import files
from dream_ray.config import ConfigError, load_config
from dream_ray.evaluate.calibrate_command import JudgeChoice, run_calibration
from dream_ray.evaluate.labelled import LabelledDataError
from dream_ray.prompts import TemplateError

if TYPE_CHECKING:
    from dream_ray.config import Config
    from dream_ray.pipeline.driver import Result
    from dream_ray.pipeline.reporting import Written
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
def plan(
    config: Annotated[Path, typer.Argument(help="YAML file; configs/ has examples.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, dotted.")] = None,
    run_dir: Annotated[str | None, typer.Option(help="Where results live: a folder, s3:// or gs://.")] = None,
) -> None:
    """Predict calls, tokens and cost of each stage, before anything runs; finished stages cost nothing more.

    Example: dream-ray plan configs/local.yaml rounds=1 budget.max_cost_usd=20
    """
    from dream_ray.pipeline import preflight
    from dream_ray.pipeline.forecast import forecast
    from dream_ray.pipeline.forecast_table import render_forecast
    from dream_ray.pipeline.store import RunStore

    try:
        settings = load_config(config, overrides or [])
        preflight.check(settings)
    except ConfigError as error:
        _complain(error)
        raise typer.Exit(UNUSABLE) from None
    found = forecast(settings, RunStore(_target(settings, run_dir)))
    _console().print(render_forecast(found), highlight=False)


@app.command()
def status(
    run_dir: Annotated[str, typer.Argument(help="Of a run that goes on or has ended: a folder, s3:// or gs://.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs, on one line.")] = False,
) -> None:
    """Show where a run is: finished stages, progress, failures, cost, who works on it and when it was last heard of.

    Needs no cluster and disturbs nothing. Example: dream-ray status runs/local
    """
    from dream_ray.pipeline import status as statuses

    with _settings_that_work():
        found = statuses.read_status(run_dir)
    if as_json:
        print(json.dumps(statuses.as_json(found)))
    else:
        _console().print(statuses.render_status(found), highlight=False, soft_wrap=True)


@app.command()
def doctor(
    config: Annotated[Path, typer.Argument(help="YAML file; configs/ has examples.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, dotted.")] = None,
    gpu_gib: Annotated[float | None, typer.Option(help="Memory of one GPU; cluster.gpu_gib unless given.")] = None,
) -> None:
    """Estimate memory for training and engines, and say what will not fit, before anything is tried.

    Example: dream-ray doctor configs/local.yaml sft.micro_batch_size=2 --gpu-gib 23.9
    """
    import psutil

    from dream_ray.doctor.check import Machine, examine
    from dream_ray.doctor.memory import GIB
    from dream_ray.doctor.table import render_diagnosis

    with _settings_that_work():
        settings = load_config(config, overrides or [])
        size = settings.cluster.gpu_gib if gpu_gib is None else gpu_gib
        found = examine(settings, Machine(size, psutil.virtual_memory().total / GIB))
    _console().print(render_diagnosis(found), highlight=False)
    raise typer.Exit(OK if found.fits else FAILED)


@app.command()
def serve(
    config: Annotated[Path, typer.Argument(help="YAML file; its judge section says what is served.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, dotted.")] = None,
) -> None:
    """Serve the scorer, and the judge model if `judge.serve_model` names one, until Ctrl-C.

    Example: dream-ray serve configs/local.yaml judge.port=8000
    """
    raise typer.Exit(serve_scorer(str(config), overrides or []))


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
def calibrate(
    data: Annotated[
        list[str], typer.Argument(help="Files of labelled answers (.csv, .tsv, .jsonl, .json) or folders.")
    ],
    config: Annotated[Path | None, typer.Option(help="Calibrate this config's judge.")] = None,
    judge: Annotated[
        JudgeChoice | None, typer.Option(help="`config` where --config is given, else `rules`.", show_default=False)
    ] = None,
    label_map: Annotated[str, typer.Option(help='What labels mean: "LABEL=complies,OTHER=refuses".')] = "",
    columns: Annotated[str, typer.Option(help='Where columns have other names: "response=answer,label=grade".')] = "",
    out: Annotated[str | None, typer.Option(help="Folder for calibration.json and disagreements.csv.")] = None,
) -> None:
    """Compare a judge with people: agreement, Cohen's kappa, precision and recall of refusal and compliance.

    Example: dream-ray calibrate answers.csv --label-map "yes=refuses,no=complies" --out calibration
    """
    choice = judge or (JudgeChoice.RULES if config is None else JudgeChoice.CONFIG)
    try:
        enough = run_calibration(data, config, choice, label_map, columns, out)
    except (ConfigError, TemplateError, LabelledDataError) as error:
        _complain(error)
        raise typer.Exit(UNUSABLE) from None
    except KeyboardInterrupt:
        raise typer.Exit(STOPPED) from None
    raise typer.Exit(OK if enough else FAILED)


@app.command()
def report(
    run_dir: Annotated[str, typer.Argument(help="Of a run, finished or not: a folder, s3:// or gs://.")],
) -> None:
    """Write the report of a run anew: report.html, metrics.json, metrics.csv and model_card.md in its directory.

    Needs no cluster and no model. Example: dream-ray report runs/local
    """
    from dream_ray.evaluate.table import render_table
    from dream_ray.pipeline.reporting import write_report

    with _settings_that_work():
        written = write_report(run_dir)
        (data,) = written.runs.values()
        console = _console()
        console.print(render_table(data.metrics))
        for row in data.rounds:
            console.print(f"round {row.number}: {row.reason}", highlight=False)
        console.print(f"policy that stands: {data.standing or 'none was evaluated yet'}", highlight=False)
        _print_page("report", written.uri, written.size)


@app.command()
def export(
    source: Annotated[
        str, typer.Argument(metavar="RUN_DIR|POLICY", help="Run directory, adapter folder or model folder.")
    ],
    output: Annotated[str, typer.Argument(help="The folder to write; it must not be there yet.")],
    data: Annotated[
        bool, typer.Option("--data", help="Write what the run learnt from, not the policy it ends with.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="The model that an adapter folder goes on; what it names unless given.")
    ] = None,
) -> None:
    """Write a run's policy as one model folder for transformers, or its training data for TRL and LLaMA-Factory.

    Example: dream-ray export runs/local build/aligned; dream-ray export --data runs/local build/aligned-data
    """
    from dream_ray.pipeline.export import export_data, export_policy

    with _settings_that_work():
        if data:
            written = export_data(source, output)
            for name, count in (
                *written.rows.items(),
                *((f"left out, {why}", n) for why, n in written.skipped.items()),
            ):
                print(f"{name}: {count} rows")
            print(f"data: {output}")
        else:
            print(f"policy {export_policy(source, output, base)}: {output}")


@app.command()
def compare(
    run_dirs: Annotated[
        list[str], typer.Argument(metavar="RUN_DIR...", help="Two or more; the first is the yardstick.")
    ],
    output: Annotated[str, typer.Option(help="The page to write.")] = "comparison.html",
) -> None:
    """Write a page that shows runs side by side: numbers, paired differences on shared prompts, settings that differ.

    Example: dream-ray compare runs/local runs/lower-beta
    """
    from dream_ray.evaluate.table import render_comparison
    from dream_ray.pipeline.reporting import write_comparison

    with _settings_that_work():
        written = write_comparison(run_dirs, output)
        standing = [(name, data.standing, data.metrics) for name, data in written.runs.items()]
        _console().print(render_comparison(standing))
        _print_page("comparison", written.uri, written.size)


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
    _prepare_process()
    try:
        config = load_config(config_path, overrides)
        target = run_dir or files.join(config.run_dir or f"runs/{config.name}", "evaluate")
        from dream_ray.pipeline import evaluation
        from dream_ray.pipeline.store import RunStore

        plan = evaluation.plan(config, policies, benchmarks)
    except ConfigError as error:
        _complain(error)
        return UNUSABLE

    from dream_ray.evaluate.benchmark_table import render_benchmarks
    from dream_ray.pipeline.attempt import attempt
    from dream_ray.pipeline.cluster import connected
    from dream_ray.pipeline.lease import LeaseLost
    from dream_ray.pipeline.parts import StageFailed

    try:
        with attempt(RunStore(target), plan.config), connected(plan.config):
            measured, path = evaluation.carry_out(plan, target)
    except ConfigError as error:
        _complain(error)
        return UNUSABLE
    except (StageFailed, LeaseLost) as error:
        _complain(error)
        return FAILED
    except KeyboardInterrupt:
        print(f"Stopped. What is done stays in {target}; run the same command again to go on.", file=sys.stderr)
        return STOPPED
    console = _console()
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

    console = _console()
    if form is None or path is None:
        print_formats(console, form)
        return OK
    try:
        source = load_source(form, path, settings)
        found = survey(source)
    except ConfigError as error:
        _complain(error)
        return UNUSABLE
    print_survey(console, source, found)
    return FAILED if found.prompts == 0 or (found.complaints and not source.partial) else OK


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
        target = _target(config, run_dir)
        from dream_ray.pipeline import preflight

        preflight.check(config)
        preflight.check_cache(config)
    except ConfigError as error:
        _complain(error)
        return UNUSABLE

    from dream_ray.pipeline.attempt import attempt
    from dream_ray.pipeline.cluster import connected, scorer
    from dream_ray.pipeline.lease import LeaseLost
    from dream_ray.pipeline.parts import StageFailed
    from dream_ray.pipeline.run import Run

    try:
        current = Run(config, target)
        with attempt(current.store, config), connected(config), scorer(current) as scorer_url:
            tell = work(current, scorer_url)
    except ConfigError as error:
        _complain(error)
        return UNUSABLE
    except (StageFailed, LeaseLost) as error:
        _complain(error)
        return FAILED
    except KeyboardInterrupt:
        print(f"Stopped. What is done stays in {target}; run the same command again to go on.", file=sys.stderr)
        return STOPPED
    tell()
    return OK


def serve_scorer(config_path: str, overrides: list[str]) -> int:
    """`dream-ray serve`: start, say where, wait for Ctrl-C or SIGTERM, take everything down; the exit code."""
    _prepare_process()
    from dream_ray.pipeline import service

    try:
        config = load_config(config_path, overrides)
        service.check(config)
    except ConfigError as error:
        _complain(error)
        return UNUSABLE

    from dream_ray.pipeline.cluster import connected
    from dream_ray.pipeline.run import Run

    print("Starting; a judge model of one's own takes a minute or more.", flush=True)
    try:
        with connected(config), service.service(Run(config, _target(config, None))) as running:
            print(service.describe(running, config.judge.token_env), flush=True)
            threading.Event().wait()
    except RuntimeError as error:
        _complain(error)
        return FAILED
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
    return OK


def _target(config: "Config", run_dir: str | None) -> str:
    """The run directory: the command's, else the config's, else runs/<name>."""
    return run_dir or config.run_dir or f"runs/{config.name}"


def _print_result(current: "Run", result: "Result", page: "Written", seconds: float) -> None:
    """Where the time and the memory went, the rounds and the numbers, as tables."""
    from rich.table import Table

    from dream_ray.evaluate.benchmark_table import render_benchmarks
    from dream_ray.evaluate.table import render_table
    from dream_ray.pipeline.payments import ledger_uri, paid_before, run_is_paid

    console = _console()
    times = Table(title="where time, memory (of all processes together) and money went", title_justify="left")
    for column in ("stages", "rows", "failed", "tokens in", "cached", "out", "cost", "paid", "seconds", "GiB"):
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
    _print_page("report", page.uri, page.size)
    console.print(f"{seconds:.0f} s in all", highlight=False)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120)


def _print_page(name: str, uri: str, size: int) -> None:
    from dream_ray.evaluate.page import format_size

    place = files.resolve(uri)[1] if files.is_local(uri) else uri
    _console().print(f"{name}: {place} ({format_size(size)})", soft_wrap=True, highlight=False)


def _complain(error: Exception) -> None:
    Console(stderr=True).print(str(error), style="red", soft_wrap=True, markup=False, highlight=False)


@contextmanager
def _settings_that_work() -> Iterator[None]:
    """Ends the command where a setting cannot work, with the paragraph that says why."""
    try:
        yield
    except ConfigError as error:
        _complain(error)
        raise typer.Exit(UNUSABLE) from None


def _prepare_process() -> None:
    """Progress on stdout, the libraries' own left out, and SIGTERM as Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    for name in ("httpx", "httpcore", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _as_interrupt)


def _as_interrupt(signum: int, frame: object) -> None:
    """A spot machine's SIGTERM ends a run as Ctrl-C does: cleanly and resumable."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    app()
