"""The numbers of benchmarks as tables for the terminal.

Contract: `render_benchmarks` returns something that rich prints; it reads `Metric` rows whose split names a benchmark, and
comparisons, and nothing else. Only whole benchmarks are printed; the slices are in the files.
"""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from dream_ray.evaluate.benchmarks import BENCHMARKS
from dream_ray.evaluate.metrics import ALL, find_metric
from dream_ray.evaluate.paired import Comparison, Difference
from dream_ray.evaluate.table import NOT_KNOWN, format_share, policies_of
from dream_ray.records import Metric


def render_benchmarks(metrics: Sequence[Metric], comparisons: Sequence[Comparison]) -> Group:
    """A table per benchmark with a column a policy, and one of the changes from the first policy."""
    names = [name for name in BENCHMARKS if any(metric.split == name for metric in metrics)]
    tables = [_table([metric for metric in metrics if metric.split == name], name) for name in names]
    if comparisons:
        tables.append(_changes(comparisons))
    return Group(*tables)


def _table(metrics: Sequence[Metric], benchmark: str) -> Table:
    policies = policies_of(metrics)
    table = Table(title=benchmark, title_justify="left", caption="shares with 95 % intervals", caption_justify="left")
    for column in ("number", *policies):
        table.add_column(column)
    for name in dict.fromkeys(metric.name for metric in metrics):
        own = [[metric for metric in metrics if metric.policy == policy] for policy in policies]
        table.add_row(name, *(format_share(find_metric(found, benchmark, name, ALL)) for found in own))
    return table


def _changes(comparisons: Sequence[Comparison]) -> Table:
    table = Table(
        title="changes on the same prompts",
        title_justify="left",
        caption="differences with 95 % intervals (paired bootstrap)",
        caption_justify="left",
    )
    for column in ("benchmark", "number", "from", "to", "change", "prompts up, down", ""):
        table.add_column(column)
    for item in comparisons:
        found = item.difference
        cells = (format_difference(found), f"{found.gained}, {found.lost}", item.verdict)
        table.add_row(item.benchmark, item.name, item.before, item.after, *cells)
    return table


def format_difference(difference: Difference) -> str:
    """ "-12 points [-20, -4] n=50", with the prompts that one of the two has no value for where there are some."""
    if difference.value is None or difference.low is None or difference.high is None:
        return NOT_KNOWN
    left_out = f" ({difference.left_out} left out)" if difference.left_out else ""
    value, low, high = (100 * number for number in (difference.value, difference.low, difference.high))
    return f"{value:+.0f} points [{low:+.0f}, {high:+.0f}] n={difference.n}{left_out}"
