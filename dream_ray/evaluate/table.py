"""The metrics of a run as tables for the terminal.

Contract: `render_table` returns something that rich prints; it reads `Metric` rows and nothing else.
"""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from dream_ray.evaluate.metrics import ALL, METRIC_RISK, ORIGIN_SLICES, find_metric, gap_with_interval, share_of
from dream_ray.records import Metric, Split

NOT_KNOWN = "-"
"""Printed where a share has no rows."""


def policies_of(metrics: Sequence[Metric]) -> list[str]:
    """The policies in the order in which they first occur, which is the order of the run."""
    return list(dict.fromkeys(metric.policy for metric in metrics))


def format_share(metric: Metric | None) -> str:
    """ "83 % [71, 91] n=48", with the rows that have no verdict where there are some."""
    if metric is None:
        return NOT_KNOWN
    unjudged = f" ({metric.unjudged} unjudged)" if metric.unjudged else ""
    share = share_of(metric)
    if share is None:
        return f"{NOT_KNOWN} n=0{unjudged}"
    return f"{share.value:.0%} [{100 * share.low:.0f}, {100 * share.high:.0f}] n={metric.n}{unjudged}"


def format_gap(metrics: Sequence[Metric], split: str, label: str = ALL) -> str:
    """ "+0.71 [+0.55, +0.82]" of one policy's metrics."""
    gap = gap_with_interval(metrics, split, label)
    return NOT_KNOWN if gap is None else f"{gap.value:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]"


def render_table(rows: Sequence[Metric]) -> Group:
    """A table per split, and one by the origin of the risk for the held-out split; policies in the rows' order."""
    splits = [split for split in Split if any(row.split == split for row in rows)]
    tables = [_table(rows, split, (ALL,), f"{split.value}: all prompts") for split in splits]
    if Split.HELD_OUT in splits:
        present = {row.slice for row in rows if row.split == Split.HELD_OUT}
        labels = [label for label in ORIGIN_SLICES if label in present]
        tables.append(_table(rows, Split.HELD_OUT, labels, "held_out: by origin of the risk"))
    return Group(*tables)


def render_comparison(runs: Sequence[tuple[str, str | None, Sequence[Metric]]]) -> Group:
    """A table per split; each run is its name, its standing policy (None where none was evaluated) and its metrics."""
    tables = []
    for split in Split:
        if any(row.split == split for _, _, rows in runs for row in rows):
            table = Table(title=f"{split.value}: all prompts", title_justify="left")
            for column in ("run", "policy that stands", "safe", "over-refusal", "gap"):
                table.add_column(column)
            for name, standing, rows in runs:
                own = [row for row in rows if row.policy == standing]
                shares = [format_share(find_metric(own, split, share)) for share in METRIC_RISK]
                table.add_row(name, standing or NOT_KNOWN, *shares, format_gap(own, split))
            tables.append(table)
    return Group(*tables)


def _table(rows: Sequence[Metric], split: Split, labels: Sequence[str], title: str) -> Table:
    by_origin = tuple(labels) != (ALL,)
    table = Table(title=title, title_justify="left", caption="shares with 95 % intervals", caption_justify="left")
    for column in (("origin",) if by_origin else ()) + ("policy", "safe", "over-refusal", "gap"):
        table.add_column(column)
    for label in labels:
        for policy in policies_of(rows):
            own = [row for row in rows if row.policy == policy]
            shares = [format_share(find_metric(own, split, name, label)) for name in ("safe", "over_refusal")]
            first = (label,) if by_origin else ()
            table.add_row(*first, policy, *shares, format_gap(own, split, label))
        table.add_section()
    return table
