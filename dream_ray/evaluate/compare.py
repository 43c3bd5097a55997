"""Several runs side by side: one HTML file without samples, so without risky text.

Contract: `build_comparison` is a pure function to a page as page.py makes them. The first run is the one that the others
are measured against: settings that differ, and paired differences on the prompts that both evaluated.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dream_ray.evaluate.benchmark_view import BenchmarkBlock, benchmark_blocks
from dream_ray.evaluate.chart import Curve, curve
from dream_ray.evaluate.metrics import METRIC_RISK, find_metric
from dream_ray.evaluate.page import render
from dream_ray.evaluate.report import ReportData, check, of_the_loop
from dream_ray.evaluate.table import format_gap
from dream_ray.evaluate.tradeoff import tradeoff
from dream_ray.evaluate.verdicts import PairedDifference, VerdictRow, paired_differences
from dream_ray.records import Metric

ABSENT = "not set"
"""Stands for a setting that a run's config file does not hold."""


@dataclass(frozen=True)
class Compared:
    """A run in a comparison: what it is called there, its report without samples, its verdicts, its settings by their
    dotted names."""

    label: str
    data: ReportData
    verdicts: Sequence[VerdictRow]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class ComparedRow:
    """A run's standing policy on a split: both shares and the gap with its interval."""

    run: Compared
    numbers: tuple[Metric | None, ...]
    gap: str


@dataclass(frozen=True)
class AgainstFirst:
    """A run measured against the first one; no differences where they share no judged prompt."""

    label: str
    policy: str
    differences: Sequence[PairedDifference]


def headline(runs: Sequence[Compared], split: str) -> list[ComparedRow]:
    """The standing policy of every run on a split."""
    rows = []
    for run in runs:
        own = [metric for metric in run.data.metrics if metric.policy == run.data.standing]
        numbers = tuple(find_metric(own, split, name) for name in METRIC_RISK)
        rows.append(ComparedRow(run, numbers, format_gap(own, split)))
    return rows


def splits_of(runs: Sequence[Compared]) -> list[str]:
    """The splits that any run has metrics of."""
    return list(dict.fromkeys(split for run in runs for split in run.data.splits))


def against_first(runs: Sequence[Compared]) -> list[AgainstFirst]:
    """Each later run against the first, standing policy against standing policy; runs without one are left out."""
    first = runs[0]
    if first.data.standing is None:
        return []
    return [
        AgainstFirst(
            run.label,
            run.data.standing,
            paired_differences(first.verdicts, first.data.standing, run.verdicts, run.data.standing),
        )
        for run in runs[1:]
        if run.data.standing is not None
    ]


def benchmarks(runs: Sequence[Compared]) -> list[BenchmarkBlock]:
    """The standing policy of every run on each benchmark; in these blocks a run stands where else a policy does."""
    return benchmark_blocks(
        [
            replace(metric, policy=run.label)
            for run in runs
            for metric in run.data.metrics
            if metric.policy == run.data.standing and not of_the_loop(metric)
        ],
        (),
    )


def differing_settings(runs: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """The settings that are not the same in all runs: name and one value a run, as JSON."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    found = []
    for name in names:
        values = [json.dumps(run.settings[name]) if name in run.settings else ABSENT for run in runs]
        if len(set(values)) > 1:
            found.append((name, values))
    return found


def build_comparison(runs: Sequence[Compared]) -> str:
    """The page, as text to be written in UTF-8. Raises ValueError as `build_report` does."""
    for run in runs:
        check(run.data)
    splits = splits_of(runs)
    return render(
        "compare.html",
        title=", ".join(run.label for run in runs),
        runs=runs,
        splits=splits,
        headlines=[(split, headline(runs, split)) for split in splits],
        tradeoffs=[tradeoff(split, [run.data.series(run.label) for run in runs]) for split in splits],
        curves=[
            (split, [(run.label, _curve(run, split)) for run in runs if split in run.data.splits]) for split in splits
        ],
        against=against_first(runs),
        benchmarks=benchmarks(runs),
        settings=differing_settings(runs),
        rules=[run.label for run in runs if any(chat.backend == "rules" for chat in run.data.chats)],
    )


def _curve(run: Compared, split: str) -> Curve:
    return curve(run.data.metrics, split, run.data.policies, run.data.parents, run.data.refused)
