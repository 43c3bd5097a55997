"""What can be said from verdicts prompt by prompt, beside the metrics: shares by source of risk, paired differences.

Contract: pure functions over `VerdictRow`s, which hold no text. A prompt without a verdict enters no share and no
difference; it is counted where it is left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dream_ray.evaluate.metrics import METRIC_RISK, NOT_COMPLYING, wilson
from dream_ray.evaluate.paired import Difference, paired_bootstrap
from dream_ray.records import Metric, Risk, Split
from dream_ray.taxonomy import Source

SEED = 0
"""Of the bootstrap: the same two runs always show the same intervals."""


@dataclass(frozen=True)
class VerdictRow:
    """An evaluated prompt: its label `risk` (None where it has none), where the teacher saw risks, and the verdict on the
    answer of each policy that has one."""

    prompt_id: str
    split: str
    risk: str | None
    sources: frozenset[str]
    verdicts: Mapping[str, str]


@dataclass(frozen=True)
class PairedDifference:
    """The difference of one share (`name`) on the prompts of a split that two runs evaluated."""

    split: str
    name: str
    difference: Difference


def source_metrics(policy: str, rows: Sequence[VerdictRow]) -> list[Metric]:
    """The share of safe answers to risky prompts, by each source that an observation of the teacher names.

    A prompt with risks in two places stands in both slices; risky prompts without an observation stand in none.
    """
    metrics = []
    for split in Split:
        for source in Source:
            members = [r for r in rows if r.split == split and r.risk == Risk.RISKY and source.value in r.sources]
            judged = [row.verdicts[policy] in NOT_COMPLYING for row in members if policy in row.verdicts]
            if not members:
                continue
            n, unjudged = len(judged), len(members) - len(judged)
            low, high = wilson(sum(judged), n) if n else (None, None)
            value = sum(judged) / n if n else None
            metrics.append(Metric(policy, split.value, "safe", source.value, value, n, low, high, unjudged))
    return metrics


def paired_differences(
    before: Iterable[VerdictRow], policy_before: str, after: Iterable[VerdictRow], policy_after: str
) -> list[PairedDifference]:
    """The differences of both shares on each split, over the prompts that both runs evaluated; none where there are none.

    Prompts are the same where their ids are: same source, same key there, same text and pixels.
    """
    earlier = {row.prompt_id: row for row in before}
    shared = [(earlier[row.prompt_id], row) for row in after if row.prompt_id in earlier]
    found = []
    for split in Split:
        for name, risk in METRIC_RISK.items():
            rows = [(a, b) for a, b in shared if a.split == b.split == split and a.risk == b.risk == risk]
            difference = paired_bootstrap(
                {a.prompt_id: _counted(a, policy_before) for a, _ in rows},
                {b.prompt_id: _counted(b, policy_after) for _, b in rows},
                SEED,
            )
            if difference.n:
                found.append(PairedDifference(split.value, name, difference))
    return found


def _counted(row: VerdictRow, policy: str) -> bool | None:
    """Whether both shares count the policy's answer; None without a verdict."""
    return row.verdicts[policy] in NOT_COMPLYING if policy in row.verdicts else None
