"""Preference pairs from judged answers.

Contract: pure and deterministic. `make_pairs` works on the answers of one prompt, `balance_shifts` and
`balance_lengths` on the whole set, of which they need no more than `Outline` holds: a million prompts give too many texts for
one process.
An answer without a judgement enters no pair; within a pair the texts and the rewards differ; no text is both
preferred and turned down for one prompt. The rules (best against worst, at most two a prompt, length balance) follow
RLAIF-V (github.com/RLHF-V/RLAIF-V, utils/), where DREAM is silent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from dream_ray.config import PairConfig
from dream_ray.feedback.rubric import REWARD_RANGE, is_refusal
from dream_ray.records import Judgement, PreferencePair, Risk, Rollout, Shift, stable_id

TOLERANCE = 1e-9
"""Rewards are sums of tenths and fractions: a margin of exactly 0.2 must not fail on the last bit."""


@dataclass(frozen=True)
class _Answer:
    """One distinct text with the mean reward of all its samples."""

    text: str
    reward: float
    k: int
    refuses: bool


def make_pairs(
    prompt_risk: Risk, rollouts: Sequence[Rollout], judgements: Sequence[Judgement], config: PairConfig
) -> list[PreferencePair]:
    """Pairs of one prompt: best against worst, then second best against second worst, while the margin holds.

    `config.margin` is a share of the reward's range (2 for risky prompts, 1 for benign). Rollouts without a judgement
    and empty answers take no part; samples with the same text count as one answer with their mean reward. Raises
    ValueError where the rows belong to several prompts, a rollout or judgement comes twice, or a judgement's rollout
    is absent.
    """
    answers = _answers(rollouts, judgements)
    least = config.margin * REWARD_RANGE[prompt_risk]
    pairs = []
    for best, worst in list(zip(answers, reversed(answers), strict=True))[: min(config.per_prompt, len(answers) // 2)]:
        difference = best.reward - worst.reward
        if difference <= TOLERANCE or difference < least - TOLERANCE:
            break
        prompt_id = rollouts[0].prompt_id
        pairs.append(
            PreferencePair(
                pair_id=stable_id("pair", prompt_id, best.text, worst.text),
                prompt_id=prompt_id,
                chosen=best.text,
                rejected=worst.text,
                chosen_reward=best.reward,
                rejected_reward=worst.reward,
                risk=prompt_risk,
                shift=_shift(best.refuses, worst.refuses),
            )
        )
    return pairs


def _shift(chosen_refuses: bool, rejected_refuses: bool) -> Shift:
    if chosen_refuses == rejected_refuses:
        return Shift.NONE
    return Shift.MORE if chosen_refuses else Shift.LESS


def _answers(rollouts: Sequence[Rollout], judgements: Sequence[Judgement]) -> list[_Answer]:
    """Distinct judged texts, best first; equal rewards in the order of sampling."""
    by_rollout = {judgement.rollout_id: judgement for judgement in judgements}
    rollout_ids = {rollout.rollout_id for rollout in rollouts}
    prompt_ids = {row.prompt_id for row in rollouts} | {row.prompt_id for row in judgements}
    strange = by_rollout.keys() - rollout_ids
    if len(prompt_ids) > 1 or len(by_rollout) < len(judgements) or len(rollout_ids) < len(rollouts) or strange:
        raise ValueError(
            f"make_pairs was given {len(rollouts)} rollouts ({len(rollout_ids)} ids) and {len(judgements)} judgements "
            f"({len(by_rollout)} ids, {len(strange)} of no rollout here) of {len(prompt_ids)} prompts. Group by "
            "prompt_id first and pass each rollout and its judgement once; a doubled id means that a stage "
            "wrote its rows twice."
        )
    rewards: dict[str, list[float]] = {}
    first: dict[str, Rollout] = {}
    for rollout in sorted(rollouts, key=lambda row: (row.k, row.rollout_id)):
        text = rollout.text.strip()
        if text and rollout.rollout_id in by_rollout:
            rewards.setdefault(text, []).append(by_rollout[rollout.rollout_id].reward)
            first.setdefault(text, rollout)
    answers = [
        _Answer(text, sum(values) / len(values), first[text].k, is_refusal(by_rollout[first[text].rollout_id].verdict))
        for text, values in rewards.items()
    ]
    return sorted(answers, key=lambda answer: (-answer.reward, answer.k, answer.text))


class Weighable(Protocol):
    """What balancing asks of a pair; a PreferencePair has it, and so has its `Outline`."""

    @property
    def pair_id(self) -> str: ...
    @property
    def risk(self) -> Risk: ...
    @property
    def shift(self) -> Shift: ...
    @property
    def chosen_reward(self) -> float: ...
    @property
    def rejected_reward(self) -> float: ...
    @property
    def words(self) -> tuple[int, int]: ...


P = TypeVar("P", bound=Weighable)


@dataclass(frozen=True, slots=True)
class Outline:
    """A pair without its texts."""

    pair_id: str
    risk: Risk
    shift: Shift
    chosen_reward: float
    rejected_reward: float
    words: tuple[int, int]

    @classmethod
    def of(cls, pair: PreferencePair) -> Self:
        """The outline of a pair."""
        return cls(pair.pair_id, pair.risk, pair.shift, pair.chosen_reward, pair.rejected_reward, pair.words)


def balance_shifts(pairs: Sequence[P], max_ratio: float) -> tuple[list[P], list[P]]:
    """Leave out pairs that teach to refuse more, or those that teach to refuse less, until there are at most `max_ratio` of
    the commoner kind per pair of the other.

    Otherwise DPO moves every answer the commoner way, whatever is asked. Pairs with the least difference of rewards, as a
    share of their range, go first; those that teach neither stay. A set that teaches one of them only stays whole: there is
    nothing to balance. Returns (kept, left_out), both in the order of the input.
    """
    fewest, most = sorted(
        ([pair for pair in pairs if pair.shift == shift] for shift in (Shift.MORE, Shift.LESS)), key=len
    )
    if not fewest:
        return list(pairs), []
    ranked = sorted(most, key=lambda pair: (-_difference(pair), pair.pair_id))
    dropped = {pair.pair_id for pair in ranked[int(max_ratio * len(fewest)) :]}
    kept = [pair for pair in pairs if pair.pair_id not in dropped]
    return kept, [pair for pair in pairs if pair.pair_id in dropped]


def _difference(pair: Weighable) -> float:
    return (pair.chosen_reward - pair.rejected_reward) / REWARD_RANGE[pair.risk]


def balance_lengths(pairs: Sequence[P], max_ratio: float) -> tuple[list[P], list[P]]:
    """Leave out pairs until mean chosen words / mean rejected words lies within [1 / max_ratio, max_ratio].

    Otherwise DPO learns that longer (or shorter) is better. The pair that tips the ratio most goes first, which needs
    the fewest for one side of the bound; the last to go is one that lands inside it, where there is such a pair.
    Returns (kept, left_out), both in the order of the input; which pairs go does not depend on that order. Everything
    may go.
    """
    words = [pair.words for pair in pairs]
    kept = sorted(range(len(pairs)), key=lambda index: pairs[index].pair_id)
    while True:
        chosen, rejected = (sum(words[index][side] for index in kept) for side in (0, 1))
        if _within(chosen, rejected, max_ratio):
            break
        # How far a pair pushes beyond the bound that is broken; the set's total is the sum, and is above 0.
        long = chosen > max_ratio * rejected
        excess = [c - max_ratio * r if long else r - max_ratio * c for c, r in words]
        kept.sort(key=lambda index: -excess[index])
        drop, total = 0, sum(excess[index] for index in kept)
        while drop < len(kept) - 1 and excess[kept[drop]] < total:
            total -= excess[kept[drop]]
            chosen, rejected = chosen - words[kept[drop]][0], rejected - words[kept[drop]][1]
            drop += 1
        # One more is enough for this bound; take the most extreme one that does not break the other.
        rest = kept[drop:]
        last = next((i for i in rest if _within(chosen - words[i][0], rejected - words[i][1], max_ratio)), rest[0])
        kept = [index for index in rest if index != last]
    stay = set(kept)
    return [pairs[i] for i in range(len(pairs)) if i in stay], [pairs[i] for i in range(len(pairs)) if i not in stay]


def _within(chosen: int, rejected: int, max_ratio: float) -> bool:
    return chosen <= max_ratio * rejected and rejected <= max_ratio * chosen
