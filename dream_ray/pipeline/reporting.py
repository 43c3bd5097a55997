"""From a run directory to its report: the page, the same numbers as JSON and CSV, and the model card.

Contract: the loop and `dream-ray report` call the same `write_report`, which reads the directory only, so that both write
the same. What the run did stands in its manifests; what its numbers do not show is said in `_caveats`.
"""

import csv
import dataclasses
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from dream_ray import files
from dream_ray.chat.factory import chat_name
from dream_ray.config import ChatConfig, ConfigError, VllmConfig
from dream_ray.evaluate.card import model_card
from dream_ray.evaluate.compare import Compared, build_comparison
from dream_ray.evaluate.distribution import Distribution, distribution
from dream_ray.evaluate.metrics import find_metric, gap_with_interval
from dream_ray.evaluate.paired import Comparison, Difference
from dream_ray.evaluate.report import ChatRow, ReportData, StageRow, build_report, of_the_loop
from dream_ray.evaluate.verdicts import source_metrics
from dream_ray.feedback.rubric import REWARD_RANGE
from dream_ray.pipeline.browse import browse
from dream_ray.pipeline.past_run import PastRun, read_run
from dream_ray.pipeline.run import Done
from dream_ray.pipeline.store import RunStore
from dream_ray.records import Metric, Risk, RiskOrigin, Split
from dream_ray.train.policy import Policy

SETTINGS = (
    "seed",
    "rounds",
    "teacher.chat",
    "teacher.benign_ratio",
    "judge.chat",
    "lora",
    "lora.rank",
    "lora.alpha",
    "sft.learning_rate",
    "sft.epochs",
    "sft.batch_size",
    "rollout.k",
    "rollout.share",
    "rollout.temperature",
    "rollout.max_tokens",
    "pairs.margin",
    "pairs.per_prompt",
    "dpo.learning_rate",
    "dpo.epochs",
    "dpo.batch_size",
    "dpo.loss",
    "dpo.beta",
    "dpo.label_smoothing",
    "dpo.sft_weight",
    "dpo.reference",
)
"""What the model card says of the config: the settings that decide what a policy becomes, none that name a place."""


@dataclass(frozen=True)
class Written:
    """A page that was written: where, how many bytes, and what it says of each run, by what the run is called there."""

    uri: str
    size: int
    runs: Mapping[str, ReportData]


def write_policy(store: RunStore, policy: Policy) -> None:
    """Write the address of the policy that a finished run ends with."""
    content = {"name": policy.name, "model": policy.model, "adapter": policy.adapter}
    files.write_atomic(files.join(store.uri, "policy.json"), json.dumps(content, indent=2).encode())


def write_report(run_dir: str) -> Written:
    """Write report.html, metrics.json, metrics.csv, comparisons.csv and model_card.md of a run directory, whole or half done.

    Where policies from elsewhere were measured there is nothing to publish: no model card, and metrics.json is left as it is.
    Raises ConfigError where the directory holds no run, or no finished stage yet.
    """
    run = read_run(run_dir)
    data = report_data(run)
    page = build_report(dataclasses.replace(data, samples=tuple(browse(run)))).encode()
    if run.aligns:
        files.write_atomic(files.join(run.store.uri, "metrics.json"), _as_json(data))
        files.write_atomic(files.join(run.store.uri, "model_card.md"), model_card(data).encode())
    files.write_atomic(files.join(run.store.uri, "metrics.csv"), _metrics_csv(data.metrics))
    files.write_atomic(files.join(run.store.uri, "comparisons.csv"), _comparisons_csv(data.comparisons))
    files.write_atomic(run.store.report_uri, page)
    return Written(run.store.report_uri, len(page), {data.run_name: data})


def write_comparison(run_dirs: Sequence[str], output: str) -> Written:
    """Write the page that shows several runs side by side. Raises ConfigError where one of them cannot be read."""
    if len(run_dirs) < 2:
        raise ConfigError(
            f"{len(run_dirs)} run directory was given, but a comparison needs two or more. Name another one, or use "
            "`dream-ray report` for a single run."
        )
    runs = [read_run(run_dir) for run_dir in run_dirs]
    labels = _labels(run_dirs)
    compared = [
        Compared(label, report_data(run), tuple(run.verdict_rows()), _flat(run.settings))
        for label, run in zip(labels, runs, strict=True)
    ]
    page = build_comparison(compared).encode()
    files.write_atomic(output, page)
    return Written(output, len(page), {one.label: one.data for one in compared})


def _labels(run_dirs: Sequence[str]) -> list[str]:
    """What the runs are called: their folders' names, numbered where they are the same."""
    names = [PurePosixPath(files.resolve(run_dir)[1]).name for run_dir in run_dirs]
    return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names, 1)]


def report_data(run: PastRun) -> ReportData:
    """What there is to say of a run, without its samples. Raises ConfigError where no stage is done."""
    if not run.stages:
        raise ConfigError(
            f"No stage of the run in {run.store.uri} is done, so there is nothing to report. Start it, or let it go on, "
            "with `dream-ray run` and the same --run-dir."
        )
    config = run.config
    rows = list(run.verdict_rows())
    metrics = [metric for found in run.metrics.values() for metric in found]
    metrics += [metric for policy in run.metrics for metric in source_metrics(policy, rows)]
    settings = _flat(config.model_dump(mode="json"))
    settings |= {f"{role}.chat": chat.identity() for role, chat in _chats(run)}
    return ReportData(
        run_name=config.name,
        config_digest=hashlib.sha256(config.model_dump_json().encode()).hexdigest(),
        student=PurePosixPath(config.student.model).name,
        aligns=run.aligns,
        standing=run.standing,
        finished=run.finished,
        chats=tuple(ChatRow(role, chat.backend, chat_name(chat)) for role, chat in _asked(run)),
        rounds=tuple(run.rounds),
        metrics=tuple(metrics),
        comparisons=tuple(run.comparisons),
        stages=tuple(_stage_row(done) for done in run.stages),
        distributions=tuple(_distributions(run)),
        counts=_counts(run),
        settings={name: settings[name] for name in SETTINGS if name in settings},
        samples=(),
        caveats=tuple(_caveats(run)),
    )


def _chats(run: PastRun) -> Iterator[tuple[str, ChatConfig]]:
    """Teacher and judge; weights of an own engine by their folder's name, as nobody else knows the place."""
    chat: ChatConfig
    for role, chat in (("teacher", run.config.teacher.chat), ("judge", run.config.judge.chat)):
        if isinstance(chat, VllmConfig):
            chat = chat.model_copy(update={"model": PurePosixPath(chat.model).name})
        yield role, chat


def _asked(run: PastRun) -> list[tuple[str, ChatConfig]]:
    """Those of both that the run asked: where it only measured policies there was no teacher."""
    return [(role, chat) for role, chat in _chats(run) if run.aligns or role == "judge"]


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of settings by their dotted names; lists stay whole."""
    if not isinstance(settings, dict):
        return {prefix: settings}
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _as_json(data: ReportData) -> bytes:
    content = {
        "run": data.run_name,
        "config_digest": data.config_digest,
        "standing": data.standing,
        "finished": data.finished,
        "counts": dict(data.counts),
        "rounds": [dataclasses.asdict(row) for row in data.rounds],
        "metrics": [dataclasses.asdict(metric) for metric in data.metrics],
        "gaps": list(_gaps(data.metrics)),
        "comparisons": [comparison.as_json() for comparison in data.comparisons],
        "distributions": [dataclasses.asdict(found) for found in data.distributions],
        "stages": [dataclasses.asdict(row) for row in data.stages],
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def _gaps(metrics: Sequence[Metric]) -> Iterator[dict[str, Any]]:
    """Safe minus over-refusal, with its interval, of every policy, split and slice that has both."""
    for policy, split, label in dict.fromkeys(
        (row.policy, row.split, row.slice) for row in metrics if of_the_loop(row)
    ):
        own = [row for row in metrics if (row.policy, row.split, row.slice) == (policy, split, label)]
        if gap := gap_with_interval(own, split, label):
            yield {"policy": policy, "split": split, "slice": label} | dataclasses.asdict(gap)


def _metrics_csv(metrics: Iterable[Metric]) -> bytes:
    return _as_csv(_names(Metric), map(dataclasses.asdict, metrics))


def _comparisons_csv(comparisons: Iterable[Comparison]) -> bytes:
    """Flat: `from` and `to` are the policies, `before` and `after` their shares."""
    columns = ("benchmark", "number", "from", "to", *_names(Difference), "p_value", "verdict")
    rows = (
        {"benchmark": item.benchmark, "number": item.name, "from": item.before, "to": item.after}
        | dataclasses.asdict(item.difference)
        | {"p_value": item.difference.p_value, "verdict": item.verdict}
        for item in comparisons
    )
    return _as_csv(columns, rows)


def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _stage_row(done: Done) -> StageRow:
    manifest = done.manifest
    return StageRow(
        key=done.ref.key,
        rows_in=manifest.rows_in,
        rows_out=manifest.rows_out,
        failed=manifest.failed,
        failures=manifest.failures,
        prompt_tokens=manifest.prompt_tokens,
        completion_tokens=manifest.completion_tokens,
        cost_usd=manifest.cost_usd,
        seconds=manifest.seconds,
        passed_with=manifest.passed_with,
        peak_memory_bytes=manifest.peak_memory_bytes,
        cached_tokens=manifest.cached_tokens,
        paid_usd=manifest.paid_usd,
        gpu_held_s=manifest.gpu_held_s,
        gpu_idle_s=manifest.gpu_idle_s,
    )


def _batches(done: Done | None, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a stage's rows, a batch at a time."""
    paths = files.list_files(done.ref.data_uri, ".parquet") if done else []
    if done and paths:
        yield from pads.dataset(paths, filesystem=files.resolve(done.ref.data_uri)[0]).to_batches(columns=list(columns))


def _counts(run: PastRun) -> dict[str, int]:
    """How many rows of what the run worked with."""
    found: dict[tuple[str, str], int] = defaultdict(int)
    for batch in _batches(run.stage("ingest"), ("split", "risk")):
        for row in batch.to_pylist():
            found[row["split"], row["risk"] or "unlabelled"] += 1
    order = [(split.value, risk) for split in Split for risk in (*(kind.value for kind in Risk), "unlabelled")]
    counts = {f"{risk} prompts, {split}": found[split, risk] for split, risk in order if found[split, risk]}
    if demonstrations := run.stage("demonstrate"):
        counts["demonstrations"] = demonstrations.manifest.rows_out
    for number in range(1, run.config.rounds + 1):
        if pairs := run.stage(f"round-{number}/pair"):
            counts[f"preference pairs, round {number}"] = pairs.manifest.rows_out
    return counts


def _distributions(run: PastRun) -> Iterator[Distribution]:
    """Rewards and lengths of every round's pairs, by kind of prompt."""
    sides = ("chosen", "rejected")
    for number in range(1, run.config.rounds + 1):
        rewards: dict[tuple[str, str], list[float]] = defaultdict(list)
        words: dict[tuple[str, str], list[float]] = defaultdict(list)
        columns = ("risk", *sides, *(f"{side}_reward" for side in sides))
        for batch in _batches(run.stage(f"round-{number}/pair"), columns):
            for row in batch.to_pylist():
                for side in sides:
                    rewards[row["risk"], side].append(row[f"{side}_reward"])
                    words[row["risk"], side].append(len(row[side].split()))
        for risk in Risk:
            chosen, rejected = ((risk.value, side) for side in sides)
            if chosen in rewards:
                most = REWARD_RANGE[risk]
                yield distribution(number, risk.value, "reward", rewards[chosen], rewards[rejected], most)
                yield distribution(number, risk.value, "words", words[chosen], words[rejected])


def _caveats(run: PastRun) -> Iterable[str]:
    config = run.config
    if not run.certain:
        yield (
            "This directory has no history.json, as an earlier version wrote it: of the stages in it the newest that "
            "belong together were taken. If settings were changed and changed back, that may be the wrong ones."
        )
    if "rules" in (chat.backend for _, chat in _asked(run)):
        yield (
            "The teacher or the judge is a set of rules: OCR and a lexicon, no model. It finds what its lexicon names and "
            "judges an answer by its wording. Use a model for numbers that matter."
        )
    for done in run.stages:
        if stopped := done.manifest.extra.get("stopped"):
            steps = done.manifest.extra["steps"]
            yield f"{done.ref.key} was stopped, and its policy has the weights after {steps} steps: {stopped}."
        if skipped := done.manifest.extra.get("skipped"):
            words = ", ".join(f"{reason} x{count}" for reason, count in skipped.items())
            yield f"{done.ref.key} left out rows that cannot be learnt from: {words}."
    if run.standing is not None:
        yield from _blind_caveat(run.metrics[run.standing])
    if not run.aligns:
        return
    yield f"One seed ({config.seed}): another one gives other numbers; the intervals cover the prompts, not the training."
    if Split.HELD_OUT in config.evaluate.splits:
        yield "Held-out prompts come from the same source as the training prompts; other users ask in other ways."


def _blind_caveat(metrics: list[Metric]) -> Iterable[str]:
    """Says so where the final policy treats risky pictures no differently from their harmless twins."""
    origin = RiskOrigin.IMAGE.value
    gap = gap_with_interval(metrics, Split.HELD_OUT, origin)
    safe = find_metric(metrics, Split.HELD_OUT, "safe", origin)
    refused = find_metric(metrics, Split.HELD_OUT, "over_refusal", origin)
    if gap is None or safe is None or refused is None or safe.value is None or refused.value is None:
        return
    if gap.low <= 0:
        yield (
            "There is no evidence that the policy reads pictures: where the risk stands in the image alone, it answers "
            f"{safe.value:.0%} of {safe.n} risky prompts safely and refuses {refused.value:.0%} of {refused.n} harmless twins "
            "with the same text."
        )
