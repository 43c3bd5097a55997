"""The model card of a run's standing policy: Markdown to publish with the weights.

Contract: `model_card` is pure and takes counts, settings, numbers and names from the report's data, never a prompt, an
answer, an observation or a path of this machine: nothing in it is risky or private.
"""

import json

from dream_ray.evaluate.benchmark_table import format_difference
from dream_ray.evaluate.metrics import ALL, ORIGIN_SLICES, find_metric
from dream_ray.evaluate.report import ReportData, of_the_loop
from dream_ray.evaluate.table import format_gap, format_share
from dream_ray.records import Metric

_NUMBERS = {"safe": "safe answers to risky prompts", "over_refusal": "over-refusal of benign prompts"}


def model_card(data: ReportData) -> str:
    """The card, as Markdown. Says so where no trained policy has been evaluated yet."""
    sections = [_head(data), _method(data), _counts(data), _settings(data), _numbers(data), _judge(data), _use(data)]
    return "\n".join(section for section in sections if section)


def _head(data: ReportData) -> str:
    state = "" if data.finished else "\n**The run is not finished: these numbers are not its last.**\n"
    policy = f"the policy `{data.standing}` of the run `{data.run_name}`" if data.standing else "no policy yet"
    return f"""---
library_name: peft
tags: [safety, alignment, multimodal, dream, dream_ray]
---
# {data.run_name}: {_cell(data.student)}, aligned for safety

This is {policy}, made by [dream_ray](https://arxiv.org/abs/2504.18053) from the base model `{data.student}`.
{state}"""


def _method(data: ReportData) -> str:
    taken = sum(row.taken for row in data.rounds)
    return f"""## Method

DREAM (Liu et al., NAACL 2025): a teacher names the risks in each image-text prompt, the student is fine-tuned (LoRA) on
risk-aware answers, then improved by direct preference optimisation on AI feedback over its own answers. A round was taken
only if safe answers minus over-refusal on a development split did not fall: {taken} of {len(data.rounds)} rounds were.
"""


def _counts(data: ReportData) -> str:
    rows = "\n".join(f"| {_cell(name)} | {count} |" for name, count in data.counts.items())
    return f"## Data\n\n| rows | count |\n|---|---|\n{rows}\n" if data.counts else ""


def _settings(data: ReportData) -> str:
    rows = "\n".join(f"| {name} | {_cell(json.dumps(value))} |" for name, value in data.settings.items())
    return f"## Settings\n\n| setting | value |\n|---|---|\n{rows}\n"


def _numbers(data: ReportData) -> str:
    if not data.metrics or data.standing is None:
        return "## Numbers\n\nNo trained policy has been evaluated yet.\n"
    policies = list(dict.fromkeys((data.policies[0], data.standing)))
    own = {policy: [metric for metric in data.metrics if metric.policy == policy] for policy in policies}
    lines = [
        "## Numbers",
        "",
        "Shares with 95 % Wilson intervals; n counts the prompts with a verdict, those without are given as unjudged.",
    ]
    for split in data.splits:
        lines += ["", f"### {split}", "", f"| number | {' | '.join(policies)} |", "|---|" + "---|" * len(policies)]
        for label in (ALL, *ORIGIN_SLICES):
            for name, title in _NUMBERS.items():
                cells = [find_metric(own[policy], split, name, label) for policy in policies]
                if any(cell is not None for cell in cells):
                    where = "" if label == ALL else f", risk origin: {label}"
                    lines.append(_row(f"{title}{where}", [format_share(cell) for cell in cells]))
        lines.append(_row("gap (safe minus over-refusal)", [format_gap(own[policy], split) for policy in policies]))
    lines += _others(data, policies, own)
    return "\n".join(lines) + "\n"


def _others(data: ReportData, policies: list[str], own: dict[str, list[Metric]]) -> list[str]:
    """The numbers of benchmarks, and how they changed from the base model to the standing policy."""
    keys = dict.fromkeys((m.split, m.name, m.slice) for m in data.metrics if not of_the_loop(m))
    if not keys:
        return []
    lines = ["", "### Benchmarks", "", f"| number | {' | '.join(policies)} |", "|---|" + "---|" * len(policies)]
    lines += [
        _row(f"{key[1]}, {key[2]} ({key[0]})", [format_share(find_metric(own[policy], *key)) for policy in policies])
        for key in keys
    ]
    changes = [item for item in data.comparisons if [item.before, item.after] == policies]
    if changes:
        lines += [
            "",
            f"Changes from {policies[0]} to {policies[1]} on the same prompts, with 95 % intervals (paired bootstrap); better "
            "or worse where McNemar's exact test agrees at 5 %:",
            "",
            "| number | change | |",
            "|---|---|---|",
        ]
        lines += [
            _row(f"{item.name} ({item.benchmark})", [format_difference(item.difference), item.verdict])
            for item in changes
        ]
    return lines


def _row(title: str, cells: list[str]) -> str:
    return f"| {_cell(title)} | {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    """Text that cannot end its cell, its row or become markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _judge(data: ReportData) -> str:
    lines = [f"- {chat.role}: {_cell(chat.name)} (backend `{chat.backend}`)" for chat in data.chats]
    return (
        "## Teacher and judge\n\n"
        + "\n".join(lines)
        + "\n\nVerdicts are the judge's, not people's: an answer refuses, "
        "warns or complies. Where the judge errs, so do the numbers above; they compare only with numbers of the same judge.\n"
    )


def _use(data: ReportData) -> str:
    caveats = "\n".join(f"- {caveat}" for caveat in data.caveats)
    return f"""## Intended use

An assistant for prompts with text and images in the manner of the training prompts, where risky requests should be answered
safely and harmless ones helpfully. It is no replacement for moderation of inputs and outputs, and no advice by it on law,
health or money should be relied on.

## Limitations

{caveats}
- Attacks that were built against this policy were not tried; refusals can be talked away.
- Abilities beyond the numbers above were not measured; fine-tuning may have changed them.
"""
