"""A forecast for the terminal.

Contract: `render_forecast` returns something that rich prints; it reads a `Forecast` and nothing else.
"""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dream_ray.pipeline.forecast import DONE, Forecast
from dream_ray.pipeline.store import FINGERPRINT_DIGITS


def render_forecast(found: Forecast) -> Group:
    """A line a stage, the total of those that are not done, why some run again, the budget, what the numbers rest on."""
    table = Table(title="what the run would ask of teacher and judge", title_justify="left")
    for column in ("stage", "state", "fingerprint", "calls", "tokens in", "out", "cost"):
        table.add_column(column, justify="left" if column in ("stage", "state", "fingerprint") else "right")
    for stage in found.stages:
        item = stage.estimate
        asks = bool(item.calls or item.prompt_tokens or item.completion_tokens)
        numbers = [f"{item.prompt_tokens:,}", f"{item.completion_tokens:,}", f"${item.cost_usd:.2f}"] if asks else []
        calls = f"{item.calls:,}" if asks and stage.state != DONE else "-"
        digits = stage.fingerprint[:FINGERPRINT_DIGITS]
        table.add_row(stage.key, stage.state, digits, calls, *(numbers or ["-"] * 3))
    total = found.to_pay
    table.add_section()
    table.add_row(
        "still to do", "", "", f"{total.calls:,}", f"{total.prompt_tokens:,}", f"{total.completion_tokens:,}",
        f"${total.cost_usd:.2f}",
    )  # fmt: skip
    grounds = Table(title="what this rests on", title_justify="left")
    for column in ("what", "value", "from"):
        grounds.add_column(column)
    for row in found.grounds:
        grounds.add_row(*row)
    parts: list[RenderableType] = [table, Text(_budget_line(found)), grounds]
    again = [stage for stage in found.stages if stage.why]
    if again:
        reasons = Table(title="why stages run that have left results here (which are kept)", title_justify="left")
        for column in ("stage", "why"):
            reasons.add_column(column)
        for stage in again:
            reasons.add_row(Text(stage.key), Text(stage.why))
        parts.insert(1, reasons)
    return Group(*parts)


def _budget_line(found: Forecast) -> str:
    """What was paid, what comes, and whether the budget bears it."""
    expected = found.paid_usd + found.to_pay.cost_usd
    said = (
        f"paid so far: ${found.paid_usd:.2f}; expected in the end: ${expected:.2f} at most, less what the cache knows"
    )
    if found.budget_usd is None:
        return f"{said}; no budget.max_cost_usd is set"
    verdict = "within" if expected <= found.budget_usd else "OVER"
    return f"{said}: {verdict} budget.max_cost_usd = ${found.budget_usd:.2f}"
