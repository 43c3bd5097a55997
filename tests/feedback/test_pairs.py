import dataclasses
import random

import pytest

from dream_ray.config import PairConfig
from dream_ray.feedback.pairs import balance_lengths, balance_shifts, make_pairs
from dream_ray.records import PreferencePair, Risk, Shift, Verdict
from tests.records_for_tests import judgement_of, prompt_of, rollout_of

PROMPT = prompt_of("a request")


def pairs_of(answers: list[tuple[str, float | None]], risk: Risk = Risk.RISKY, **config) -> list[tuple[str, str]]:
    """(chosen, rejected) of answers given as text and reward; None is an answer without a judgement."""
    rollouts = [rollout_of(PROMPT, k, text) for k, (text, _) in enumerate(answers)]
    judged = [
        judgement_of(rollout, reward)
        for rollout, (_, reward) in zip(rollouts, answers, strict=True)
        if reward is not None
    ]
    pairs = make_pairs(risk, rollouts, judged, PairConfig(**config))
    assert all(pair.risk is risk and pair.prompt_id == PROMPT.prompt_id for pair in pairs)
    return [(pair.chosen, pair.rejected) for pair in pairs]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([], []),
        ([("a", 2.0)], []),
        ([("a", 2.0), ("b", 0.0)], [("a", "b")]),
        ([("a", 0.0), ("b", 2.0)], [("b", "a")]),
        ([("a", 1.0), ("b", 1.0)], []),
        ([("a", 2.0), (" a\n", 0.0)], []),
        ([("a", 2.0), ("b", None)], []),
        ([("a", 2.0), ("", 0.0)], []),
        ([("a", 2.0), ("b", 1.9), ("c", 0.1), ("d", 0.0)], [("a", "d"), ("b", "c")]),
        # The second pair is within the margin of 0.2 x 2.
        ([("a", 2.0), ("b", 1.0), ("c", 0.7), ("d", 0.0)], [("a", "d")]),
        # Three answers make one pair: the middle one would be on both sides.
        ([("a", 2.0), ("b", 1.0), ("c", 0.0)], [("a", "c")]),
        # The margin itself counts, rounding or not.
        ([("a", 1.1), ("b", 0.7)], [("a", "b")]),
        ([("a", 1.1), ("b", 0.71)], []),
        # The same text twice is one answer, with the mean of its rewards: b stands at 1.0.
        ([("a", 1.2), ("b", 2.0), ("b ", 0.0), ("c", 0.5)], [("a", "c")]),
    ],
)
def test_best_against_worst(answers: list[tuple[str, float | None]], expected: list[tuple[str, str]]) -> None:
    assert pairs_of(answers) == expected


def test_the_margin_is_a_share_of_the_range() -> None:
    answers: list[tuple[str, float | None]] = [("a", 0.5), ("b", 0.25)]
    assert pairs_of(answers, Risk.BENIGN) == [("a", "b")]
    assert pairs_of(answers, Risk.RISKY) == []


def test_no_margin_still_wants_a_difference() -> None:
    assert pairs_of([("a", 1.0), ("b", 1.0)], margin=0) == []


@pytest.mark.parametrize("most", [1, 2, 3])
def test_at_most_per_prompt(most: int) -> None:
    answers: list[tuple[str, float | None]] = [(str(k), k / 4) for k in range(8)]
    assert len(pairs_of(answers, per_prompt=most, margin=0)) == most


@pytest.mark.parametrize("seed", range(20))
def test_properties_on_random_answers(seed: int) -> None:
    draw = random.Random(seed)
    answers = [(draw.choice("abcdefgh"), draw.choice([None, *(step / 10 for step in range(21))])) for _ in range(8)]
    found = pairs_of(answers, per_prompt=4, margin=0.1)
    chosen, rejected = {pair[0] for pair in found}, {pair[1] for pair in found}
    assert not chosen & rejected
    assert len(chosen) == len(rejected) == len(found)
    judged = {text for text, reward in answers if reward is not None}
    assert chosen | rejected <= judged


def test_equal_rewards_do_not_depend_on_the_order_of_rows() -> None:
    rollouts = [rollout_of(PROMPT, k, text) for k, text in enumerate("abcd")]
    judged = [judgement_of(rollout, 2.0 if rollout.k < 2 else 0.0) for rollout in rollouts]
    forward = make_pairs(Risk.RISKY, rollouts, judged, PairConfig())
    assert make_pairs(Risk.RISKY, rollouts[::-1], judged[::-1], PairConfig()) == forward
    assert len({pair.pair_id for pair in forward}) == 2


def test_mixed_prompts_and_doubled_rows_are_errors() -> None:
    one, other = rollout_of(PROMPT, 0, "a"), rollout_of(prompt_of("another"), 1, "b")
    for rollouts, judged in [
        ([one, other], [judgement_of(one, 1.0)]),
        ([one, one], [judgement_of(one, 1.0)]),
        ([one], [judgement_of(one, 1.0), judgement_of(one, 0.0)]),
        ([one], [judgement_of(rollout_of(PROMPT, 5, "z"), 1.0)]),
    ]:
        with pytest.raises(ValueError, match="Group by prompt_id"):
            make_pairs(Risk.RISKY, rollouts, judged, PairConfig())


def pair_of(name: str, chosen: int, rejected: int) -> PreferencePair:
    return PreferencePair(name, "p", "w " * chosen, "w " * rejected, 1.0, 0.0, Risk.RISKY, Shift.NONE)


def ratio_of(pairs: list[PreferencePair]) -> float:
    return sum(len(p.chosen.split()) for p in pairs) / sum(len(p.rejected.split()) for p in pairs)


@pytest.mark.parametrize(
    ("sizes", "gone"),
    [
        ([(10, 10), (12, 10)], []),
        # One very long chosen answer tips the set.
        ([(100, 10), (10, 10), (11, 10), (10, 12)], ["0"]),
        ([(10, 100), (10, 10), (11, 10), (10, 12)], ["0"]),
        # Two pairs tip it, but the milder one is enough.
        ([(10, 10)] * 6 + [(40, 10), (25, 10)], ["6"]),
        # Dropping the most extreme would tip the set the other way; the other one lands inside.
        ([(100, 10), (50, 8), (10, 66), (20, 30)], ["1"]),
        ([(30, 10)], ["0"]),
        ([], []),
    ],
)
def test_lengths_are_balanced_by_leaving_out_the_extremes(sizes: list[tuple[int, int]], gone: list[str]) -> None:
    pairs = [pair_of(str(index), *size) for index, size in enumerate(sizes)]
    kept, left_out = balance_lengths(pairs, 1.25)
    assert [pair.pair_id for pair in left_out] == gone
    assert [pair.pair_id for pair in kept] == [pair.pair_id for pair in pairs if pair.pair_id not in gone]


@pytest.mark.parametrize("seed", range(20))
def test_balance_holds_on_random_sets_in_any_order(seed: int) -> None:
    draw = random.Random(seed)
    pairs = [pair_of(f"{i:03}", draw.randint(1, 120), draw.randint(1, 60)) for i in range(100)]
    kept, left_out = balance_lengths(pairs, 1.1)
    assert 1 / 1.1 <= ratio_of(kept) <= 1.1
    assert len(kept) + len(left_out) == 100
    shuffled = draw.sample(pairs, len(pairs))
    assert {pair.pair_id for pair in balance_lengths(shuffled, 1.1)[0]} == {pair.pair_id for pair in kept}


def test_a_bound_of_one_ends() -> None:
    kept, left_out = balance_lengths([pair_of(str(i), i + 2, i + 1) for i in range(10)] + [pair_of("x", 5, 5)], 1.0)
    assert [pair.pair_id for pair in kept] == ["x"]
    assert len(left_out) == 10


def shifting(name: str, shift: Shift, difference: float = 1.0) -> PreferencePair:
    return dataclasses.replace(pair_of(name, 5, 5), shift=shift, chosen_reward=difference)


def test_pairs_that_refuse_more_and_less_are_balanced_and_the_clearest_stay() -> None:
    more = [shifting(f"m{n}", Shift.MORE, 1.0 + n / 10) for n in range(4)]
    less = [shifting(f"l{n}", Shift.LESS) for n in range(2)]
    neither = [shifting(f"n{n}", Shift.NONE, 0.1) for n in range(3)]
    pairs = [more[0], less[0], neither[0], more[3], more[1], less[1], neither[1], more[2], neither[2]]
    kept, left_out = balance_shifts(pairs, 1.0)
    assert kept == [less[0], neither[0], more[3], less[1], neither[1], more[2], neither[2]]
    assert left_out == [more[0], more[1]]
    assert balance_shifts(list(reversed(pairs)), 1.0)[0] == list(reversed(kept))
    assert len(balance_shifts(pairs, 1.5)[0]) == 8
    assert balance_shifts(pairs, 2.0) == (pairs, [])


def test_differences_are_compared_as_shares_of_their_range() -> None:
    risky = shifting("r", Shift.LESS, 1.0)
    benign = dataclasses.replace(shifting("b", Shift.LESS, 0.8), risk=Risk.BENIGN)
    pairs = [risky, benign, shifting("m", Shift.MORE)]
    assert balance_shifts(pairs, 1.0)[1] == [risky]


def test_pairs_that_all_shift_one_way_stay_whole() -> None:
    pairs = [shifting(f"p{n}", Shift.LESS) for n in range(3)] + [shifting("n", Shift.NONE)]
    assert balance_shifts(pairs, 1.0) == (pairs, [])
    assert balance_shifts([], 1.0) == ([], [])


@pytest.mark.parametrize(
    ("chosen", "rejected", "shift"),
    [
        (Verdict.REFUSES, Verdict.COMPLIES, Shift.MORE),
        (Verdict.REFUSES, Verdict.WARNS, Shift.MORE),
        (Verdict.COMPLIES, Verdict.REFUSES, Shift.LESS),
        (Verdict.WARNS, Verdict.COMPLIES, Shift.NONE),
        (Verdict.REFUSES, Verdict.REFUSES, Shift.NONE),
    ],
)
def test_a_pair_says_where_it_moves_a_policy(chosen: Verdict, rejected: Verdict, shift: Shift) -> None:
    rollouts = [rollout_of(PROMPT, k, text) for k, text in enumerate(("good", "bad"))]
    judged = [
        dataclasses.replace(judgement_of(rollout, reward), verdict=verdict)
        for rollout, reward, verdict in zip(rollouts, (2.0, 0.0), (chosen, rejected), strict=True)
    ]
    (pair,) = make_pairs(Risk.RISKY, rollouts, judged, PairConfig())
    assert (pair.chosen, pair.shift) == ("good", shift)
