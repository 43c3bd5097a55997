"""The numbers of benchmarks in the terminal."""

import io

from rich.console import Console

from dream_ray.evaluate.benchmark_table import format_difference, render_benchmarks
from dream_ray.evaluate.metrics import share_metric
from dream_ray.evaluate.paired import Comparison, Difference, paired_bootstrap

OLD = {str(index): index < 30 for index in range(50)}
NEW = {str(index): index < 10 for index in range(50)} | {"49": None}


def test_numbers_and_changes_are_printed_with_what_is_not_known() -> None:
    metrics = [
        share_metric(policy, "xstest", "asr_hard", "all", list(values.values()))
        for policy, values in (("base", OLD), ("policy-1", NEW))
    ]
    other = share_metric("base", "held_out", "safe", "all", [True])
    comparison = Comparison("base", "policy-1", "xstest", "asr_hard", False, paired_bootstrap(OLD, NEW, 0))
    console = Console(file=io.StringIO(), width=140)
    console.print(render_benchmarks([*metrics, other], [comparison]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("xstest", "60% [46, 72] n=50", "20% [11, 34] n=49 (1 unjudged)", "(1 left out)", "0, 20", "better"):
        assert words in shown
    assert "held_out" not in shown


def test_nothing_shared_prints_as_not_known() -> None:
    assert format_difference(Difference(None, None, None, None, None, 0, 0, 0, 3)) == "-"
