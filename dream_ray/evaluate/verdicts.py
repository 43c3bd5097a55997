"""What can be said from verdicts prompt by prompt, beside the metrics: shares by source of risk, paired differences.

Contract: pure functions over `VerdictRow`s, which hold no text. A prompt without a verdict enters no share and no
difference; it is counted where it is left out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dream_ray.evaluate.metrics import METRIC_RISK, NOT_COMPLYING, wilson
from dream_ray.records import Metric, Risk, Split
from dream_ray.taxonomy import Source


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
    """after - before of one share on the same `n` prompts, in [-1, 1], with its 95 % interval.

    `gained` and `lost` count the prompts whose answer is counted by the share only after, and only before. `unjudged`
    prompts are shared too but lack one verdict.
    """

    split: str
    name: str
    value: float
    low: float
    high: float
    n: int
    gained: int
    lost: int
    unjudged: int


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
    """The differences of both shares on each split, over the prompts that both runs evaluated.

    Prompts are the same where their ids are: same source, same key there, same text and pixels.
    """
    earlier = {row.prompt_id: row for row in before}
    shared = [(earlier[row.prompt_id], row) for row in after if row.prompt_id in earlier]
    found = []
    for split in Split:
        for name, risk in METRIC_RISK.items():
            rows = [(a, b) for a, b in shared if a.split == b.split == split and a.risk == b.risk == risk]
            counted = [
                (a.verdicts[policy_before] in NOT_COMPLYING, b.verdicts[policy_after] in NOT_COMPLYING)
                for a, b in rows
                if policy_before in a.verdicts and policy_after in b.verdicts
            ]
            if counted:
                low, high = paired_interval(counted)
                gained = sum(b and not a for a, b in counted)
                lost = sum(a and not b for a, b in counted)
                n = len(counted)
                found.append(
                    PairedDifference(split.value, name, (gained - lost) / n, low, high, n, gained, lost, len(rows) - n)
                )
    return found


def paired_interval(pairs: Sequence[tuple[bool, bool]]) -> tuple[float, float]:
    """The 95 % interval of share(after) - share(before) on the same rows, each pair (before, after); in [-1, 1].

    Formula: R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", Statistics in Medicine 17 (1998), method 10: the two Wilson intervals, combined with the correlation of
    the pairs (continuity corrected where it is positive). Raises ValueError without a pair.
    """
    n = len(pairs)
    both = sum(a and b for a, b in pairs)
    neither = sum(not a and not b for a, b in pairs)
    gained = sum(b and not a for a, b in pairs)
    lost = n - both - neither - gained
    before, after = both + lost, both + gained
    low_before, high_before = wilson(before, n)
    low_after, high_after = wilson(after, n)

    product = both * neither - gained * lost
    scale = math.sqrt(before * (n - before) * after * (n - after))
    correlation = 0.0 if not scale else (max(product - n / 2, 0.0) if product > 0 else product) / scale

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(one * one - 2 * correlation * one * other + other * other, 0.0))

    share_before, share_after = before / n, after / n
    below = reach(share_after - low_after, high_before - share_before)
    above = reach(high_after - share_after, share_before - low_before)
    return share_after - share_before - below, share_after - share_before + above
