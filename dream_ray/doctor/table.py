"""A diagnosis for the terminal.

Contract: `render_diagnosis` returns something that rich prints; it reads a `Diagnosis` and nothing else.
"""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from dream_ray.doctor.check import Diagnosis, Finding
from dream_ray.doctor.memory import GIB

PARTS = {"weights": "weights", "gathered": "weights", "adapter": "adapter", "adapters": "adapter", "gradients": "optimiser",
         "optimiser": "optimiser", "activations": "activations", "step": "activations",
         "vocabulary": "activations", "images": "images", "KV cache": "KV cache", "runtime": "runtime"}  # fmt: skip
"""The columns that parts are shown in; gradients stand with the optimiser."""


def render_diagnosis(found: Diagnosis) -> Group:
    """A line a training and engine, in GiB of one GPU or process; then what does not fit, and what to change."""
    table = Table(title="estimated memory in GiB, of one GPU or (without GPU) of one process", title_justify="left")
    columns = list(dict.fromkeys(PARTS.values()))
    table.add_column("what")
    for column in (*columns, "sum", "limit"):
        table.add_column(column, justify="right")
    table.add_column("")
    for item in found.findings:
        sums = dict.fromkeys(columns, 0.0)
        for name, size in item.parts.items():
            sums[PARTS[name]] += size
        numbers = [f"{sums[column] / GIB:.1f}" if sums[column] else "-" for column in columns]
        table.add_row(item.name, *numbers, *_sums(item), _verdict(item))
    lines = [
        f"{item.name}: {item.model.name}, {item.model.parameters / 1e9:.2f}B parameters{'; ' + item.note if item.note else ''}"
        for item in found.findings
    ]
    lines += [
        f"{item.name}: {item.problem}{'; ' + item.advice if item.advice else ''}"
        for item in found.findings
        if item.problem
    ]
    lines.append(f"GPUs at once: {found.training_gpus} for training, {found.sampling_gpus} for sampling and judging")
    lines.append("all fits, by these estimates" if found.fits else "NOT ALL FITS")
    return Group(table, *(Text(line) for line in lines))


def _sums(item: Finding) -> tuple[str, str]:
    copies = f"{item.copies} x " if item.copies > 1 else ""
    return f"{copies}{item.total / item.copies / GIB:.1f}", f"{item.limit / GIB:.1f}"


def _verdict(item: Finding) -> str:
    if item.counts:
        return "does not fit" if item.problem else "fits"
    return "would not fit" if item.problem else "would fit"
