"""A calibration as tables for the terminal, as JSON, and as the list of answers on which judge and people differ.

Contract: pure. The tables and the JSON hold numbers, labels and reasons; prompts and answers, which may be risky, stand only
in the list of disagreements.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from dream_ray.evaluate.agreement import Agreement, Detection, Reading
from dream_ray.evaluate.calibrate import Numbers, SetResult
from dream_ray.evaluate.labelled import LEFT_OUT, Label, LabelledSet
from dream_ray.evaluate.metrics import Share
from dream_ray.evaluate.table import NOT_KNOWN
from dream_ray.records import Verdict

DISAGREEMENT_COLUMNS = ("set", "id", "label", "verdict", "reason", "prompt", "response")


def render_labels(sets: Sequence[LabelledSet]) -> Table:
    """How each label was read, and which rows were not."""
    table = Table(title="what the labels mean", title_justify="left")
    for column in ("set", "label", "read as", "rows"):
        table.add_column(column, justify="right" if column == "rows" else "left")
    for data in sets:
        for raw, meaning in data.labels.items():
            if meaning != LEFT_OUT:
                table.add_row(data.name, raw, meaning, str(sum(row.raw_label == raw for row in data.rows)))
        for reason, count in data.left_out.items():
            table.add_row(data.name, reason, "left out", str(count))
        table.add_section()
    return table


def render_numbers(numbers: Numbers) -> Group:
    """One set's numbers, a column per reading, and how labels met verdicts."""
    readings = _readings(numbers)
    table = Table(
        title=numbers.name, title_justify="left", caption="95 % intervals in brackets", caption_justify="left"
    )
    table.add_column("judge against people")
    for found in readings:
        table.add_column(found.reading.value if len(readings) > 1 else "")
    table.add_row("answers compared", *(str(found.n) for found in readings))
    table.add_row("without a verdict", *(str(found.unjudged) for found in readings))
    table.add_row("agreement", *(_share(found.agreement) for found in readings))
    table.add_row("Cohen's kappa", *(_share(found.kappa) for found in readings))
    for side in ("refusal", "compliance"):
        table.add_section()
        sides: list[Detection] = [getattr(found, side) for found in readings]
        table.add_row(f"{side}: precision", *(_share(part.precision, part.predicted) for part in sides))
        table.add_row(f"{side}: recall", *(_share(part.recall, part.actual) for part in sides))
        table.add_row(f"{side}: F1", *(NOT_KNOWN if part.f1 is None else f"{part.f1:.3f}" for part in sides))
    if numbers.humans:
        people = [found for found in numbers.humans if found.reading in {shown.reading for shown in readings}]
        table.add_section()
        table.add_row("two people: agreement", *(_share(found.agreement, found.n) for found in people))
        table.add_row("two people: kappa", *(_share(found.kappa) for found in people))
    return Group(table, _confusion(numbers))


def _readings(numbers: Numbers) -> list[Agreement]:
    """All readings, or one where no label lies between the sides: then they are the same."""
    between = any(label is Label.PARTLY for label, _ in numbers.confusion)
    return [found for found in numbers.readings if between or found.reading is Reading.LEFT_OUT]


def _confusion(numbers: Numbers) -> Table:
    table = Table()
    table.add_column("people say")
    verdicts = [*(Label(verdict.value) for verdict in Verdict), None]
    for verdict in verdicts:
        table.add_column("no verdict" if verdict is None else f"judge: {verdict}", justify="right")
    for label in Label:
        counts = [numbers.confusion[label, verdict] for verdict in verdicts]
        if any(counts):
            table.add_row(label, *map(str, counts))
    return table


def _share(share: Share | None, n: int | None = None) -> str:
    if share is None:
        return NOT_KNOWN
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]" + ("" if n is None else f" n={n}")


def as_json(judge: Mapping[str, Any], sets: Sequence[LabelledSet], every: Sequence[Numbers]) -> bytes:
    """Everything but prompts and answers. `judge` says who judged; it is written as it is."""
    tree = {
        "judge": judge,
        "sets": [
            {"name": data.name, "rows": len(data.rows), "labels": data.labels, "left_out": data.left_out}
            for data in sets
        ],
        "numbers": [
            {
                "name": numbers.name,
                "judge_and_people": [_tree(found) for found in numbers.readings],
                "two_people": [_tree(found) for found in numbers.humans],
                "confusion": [
                    {"people": label, "judge": verdict, "rows": count}
                    for (label, verdict), count in sorted(numbers.confusion.items(), key=str)
                ],
                "unjudged": dict(numbers.unjudged),
            }
            for numbers in every
        ],
    }
    return (json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode()


def _tree(found: Agreement) -> dict[str, Any]:
    return {
        "reading": found.reading,
        "n": found.n,
        "unjudged": found.unjudged,
        "agreement": _interval(found.agreement),
        "kappa": _interval(found.kappa),
        **{
            name: {
                "precision": _interval(side.precision),
                "recall": _interval(side.recall),
                "f1": side.f1,
                "predicted": side.predicted,
                "actual": side.actual,
            }
            for name, side in (("refusal", found.refusal), ("compliance", found.compliance))
        },
    }


def _interval(share: Share | None) -> dict[str, float] | None:
    return None if share is None else {"value": share.value, "low": share.low, "high": share.high}


def disagreements(results: Sequence[SetResult]) -> bytes:
    """A CSV of the answers on which judge and people stand on different sides or that have no verdict; those labelled
    "partly" are not among them."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(DISAGREEMENT_COLUMNS)
    for result in results:
        for row, outcome in zip(result.data.rows, result.outcomes, strict=True):
            if outcome.verdict is not None:
                complies = outcome.verdict is Verdict.COMPLIES
                if row.label is Label.PARTLY or complies == (row.label is Label.COMPLIES):
                    continue
            writer.writerow(
                (
                    result.data.name,
                    row.row_id,
                    row.raw_label,
                    outcome.verdict.value if outcome.verdict else "",
                    outcome.reason,
                    row.text,
                    row.response,
                )
            )
    return text.getvalue().encode()
