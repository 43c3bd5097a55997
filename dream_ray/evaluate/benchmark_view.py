"""The numbers of benchmarks as the report shows them: a block per benchmark, with what changed between policies.

Contract: pure. A block holds whole-benchmark numbers with a cell a policy, the judge's failure rate of each policy, the
slices apart, and every comparison with its place in a drawing whose units are those of `WIDTH`; nothing here knows HTML.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dream_ray.evaluate.benchmarks.measure import JUDGE_FAILURES
from dream_ray.evaluate.metrics import ALL
from dream_ray.evaluate.paired import Comparison
from dream_ray.evaluate.table import policies_of
from dream_ray.records import Metric

WIDTH = 240.0
"""Of the drawing of a change, from -100 to +100 points."""
_MARGIN = 6.0

Cells = list[Metric | None]
"""A number, one cell a policy; None where that policy has none."""


@dataclass(frozen=True)
class Change:
    """A comparison and its drawing: the middle and the ends of the interval, None where no prompt could be compared."""

    of: Comparison
    x: float | None
    x_low: float | None
    x_high: float | None


@dataclass(frozen=True)
class BenchmarkBlock:
    """All that is shown of one benchmark: `numbers` by name, `slices` by slice and name, `changes` by pair of policies."""

    name: str
    policies: list[str]
    judge_failures: Cells
    numbers: list[tuple[str, Cells]]
    slices: list[tuple[str, str, Cells]]
    changes: Mapping[tuple[str, str], list[Change]]


def benchmark_blocks(metrics: Sequence[Metric], comparisons: Sequence[Comparison]) -> list[BenchmarkBlock]:
    """The blocks in the order of the metrics, whose `split` names the benchmark."""
    return [
        _block(
            name,
            [metric for metric in metrics if metric.split == name],
            [item for item in comparisons if item.benchmark == name],
        )
        for name in dict.fromkeys(metric.split for metric in metrics)
    ]


def _block(name: str, metrics: Sequence[Metric], comparisons: Sequence[Comparison]) -> BenchmarkBlock:
    policies = policies_of(metrics)
    found = {(metric.policy, metric.slice, metric.name): metric for metric in metrics}

    def cells(label: str, number: str) -> Cells:
        return [found.get((policy, label, number)) for policy in policies]

    numbers = list(dict.fromkeys(metric.name for metric in metrics if metric.slice == ALL))
    slices = dict.fromkeys((metric.slice, metric.name) for metric in metrics if metric.slice != ALL)
    changes: dict[tuple[str, str], list[Change]] = {}
    for item in comparisons:
        changes.setdefault((item.before, item.after), []).append(_change(item))
    return BenchmarkBlock(
        name=name,
        policies=policies,
        judge_failures=cells(ALL, JUDGE_FAILURES),
        numbers=[(number, cells(ALL, number)) for number in numbers if number != JUDGE_FAILURES],
        slices=[(label, number, cells(label, number)) for label, number in slices],
        changes=changes,
    )


def _change(comparison: Comparison) -> Change:
    found = comparison.difference
    return Change(comparison, _x(found.value), _x(found.low), _x(found.high))


def _x(difference: float | None) -> float | None:
    return None if difference is None else round(WIDTH / 2 + (WIDTH / 2 - _MARGIN) * difference, 1)
