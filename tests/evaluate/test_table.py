"""The terminal's tables."""

from rich.console import Console

from dream_ray.evaluate.report import ReportData
from dream_ray.evaluate.table import format_gap, format_share, render_table
from dream_ray.records import Metric


def test_tables_hold_each_policy_with_n_and_intervals(report_data: ReportData) -> None:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(render_table(report_data.metrics))
    text = capture.get()
    assert [title in text for title in ("dev: all", "held_out: all", "held_out: by origin")] == [True] * 3
    assert "by origin" not in text.split("held_out: by origin")[0]
    for policy in ("base", "policy-0", "policy-1", "policy-2"):
        assert text.count(f" {policy} ") == 2 + 4  # two splits, four origins of the held-out prompts
    assert "87% [70, 95] n=30" in text
    assert "(1 unjudged)" in text


def test_a_share_of_no_rows_is_a_dash() -> None:
    empty = Metric("p", "dev", "safe", "all", None, 0, None, None, 4)
    assert format_share(empty) == "- n=0 (4 unjudged)"
    assert format_share(None) == "-"
    assert format_gap([empty], "dev") == "-"
