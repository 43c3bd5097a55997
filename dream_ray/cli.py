"""The command line. Every command says what it did, exits 0, 1 (a stage failed), 2 (a setting cannot work) or 130.

Contract: parses, calls, prints; no logic of its own. Commands that take long are in commands.py. Heavy imports (Ray, torch)
happen after the settings are checked, so that a typing error costs seconds.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dream_ray.commands import (
    FAILED,
    OK,
    STOPPED,
    UNUSABLE,
    complain,
    evaluate_policies,
    make_console,
    print_page,
    run_directory,
    run_loop,
    serve_scorer,
)
from dream_ray.config import ConfigError, load_config
from dream_ray.evaluate.calibrate_command import JudgeChoice, run_calibration
from dream_ray.evaluate.labelled import LabelledDataError
from dream_ray.prompts import TemplateError

app = typer.Typer(
    help="Safety alignment of multimodal LLMs by the DREAM method, on Ray.\n\n"
    "On a laptop: `dream-ray student build/student`, `dream-ray demo-prompts build/demo`, then "
    "`dream-ray run configs/local.yaml`. The run can be stopped at any time; the same command goes on.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ConfigFile = Annotated[Path, typer.Argument(help="YAML file; configs/ has examples.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, dotted.")]
RunDir = Annotated[str | None, typer.Option(help="Where results live: a folder, s3:// or gs://.")]


@app.command()
def run(config: ConfigFile, overrides: Overrides = None, run_dir: RunDir = None) -> None:
    """Run the loop, or go on with it where it ended.

    Example: dream-ray run configs/local.yaml rounds=1 rollout.k=4 --run-dir runs/try
    """
    raise typer.Exit(run_loop(str(config), overrides or [], run_dir))


@app.command()
def plan(config: ConfigFile, overrides: Overrides = None, run_dir: RunDir = None) -> None:
    """Predict calls, tokens and cost of each stage, before anything runs; finished stages cost nothing more.

    Example: dream-ray plan configs/local.yaml rounds=1 budget.max_cost_usd=20
    """
    from dream_ray.pipeline import preflight
    from dream_ray.pipeline.forecast import forecast
    from dream_ray.pipeline.forecast_table import render_forecast
    from dream_ray.pipeline.store import RunStore

    with _settings_that_work():
        settings = load_config(config, overrides or [])
        preflight.check(settings)
    found = forecast(settings, RunStore(run_directory(settings, run_dir)))
    make_console().print(render_forecast(found), highlight=False)


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
        make_console().print(statuses.render_status(found), highlight=False, soft_wrap=True)


@app.command()
def doctor(
    config: ConfigFile,
    overrides: Overrides = None,
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
    make_console().print(render_diagnosis(found), highlight=False)
    raise typer.Exit(OK if found.fits else FAILED)


@app.command()
def serve(
    config: Annotated[Path, typer.Argument(help="YAML file; its judge section says what is served.")],
    overrides: Overrides = None,
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
        complain(error)
        raise typer.Exit(UNUSABLE) from None
    except KeyboardInterrupt:
        raise typer.Exit(STOPPED) from None
    raise typer.Exit(OK if enough else FAILED)


@app.command()
def report(
    run_dir: Annotated[str, typer.Argument(help="Of a run, finished or not: a folder, s3:// or gs://.")],
) -> None:
    """Write the report of a run anew: report.html, model_card.md and the numbers as JSON and CSV, in its directory.

    Needs no cluster and no model. Example: dream-ray report runs/local
    """
    from dream_ray.evaluate.benchmark_table import render_benchmarks
    from dream_ray.evaluate.table import render_table
    from dream_ray.pipeline.reporting import write_report

    with _settings_that_work():
        written = write_report(run_dir)
        (data,) = written.runs.values()
        console = make_console()
        console.print(render_table(data.metrics))
        console.print(render_benchmarks(data.metrics, data.comparisons))
        for row in data.rounds:
            console.print(f"round {row.number}: {row.reason}", highlight=False)
        if data.aligns:
            console.print(f"policy that stands: {data.standing or 'none was evaluated yet'}", highlight=False)
        print_page("report", written.uri, written.size)


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
        make_console().print(render_comparison(standing))
        print_page("comparison", written.uri, written.size)


@app.command()
def evaluate(
    config: Annotated[Path, typer.Argument(help="YAML file: student, engine and judge.")],
    overrides: Overrides = None,
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
    from dream_ray.config import load_source
    from dream_ray.sources.report import print_formats, print_survey
    from dream_ray.sources.survey import survey

    console = make_console()
    if form is None or path is None:
        print_formats(console, form)
        raise typer.Exit(OK)
    with _settings_that_work():
        source = load_source(form, path, settings or [])
        found = survey(source)
    print_survey(console, source, found)
    as_published = found.prompts > 0 and (source.partial or not found.complaints)
    raise typer.Exit(OK if as_published else FAILED)


@contextmanager
def _settings_that_work() -> Iterator[None]:
    """Ends the command where a setting cannot work, with the paragraph that says why."""
    try:
        yield
    except ConfigError as error:
        complain(error)
        raise typer.Exit(UNUSABLE) from None


if __name__ == "__main__":
    app()
