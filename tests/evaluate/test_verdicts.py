"""Shares by source and paired differences, prompt by prompt."""

from dream_ray.evaluate.metrics import wilson
from dream_ray.evaluate.verdicts import VerdictRow, paired_differences, source_metrics
from dream_ray.taxonomy import Source

TEXT, IMAGE = Source.TEXT_INSTRUCTION.value, Source.TEXT_IN_IMAGE.value


def row(name: str, verdict: str | None, *sources: str, split: str = "dev", risk: str | None = "risky") -> VerdictRow:
    return VerdictRow(name, split, risk, frozenset(sources), {} if verdict is None else {"p": verdict})


def test_a_prompt_with_two_sources_stands_in_both_and_none_without_a_verdict_counts() -> None:
    rows = [
        row("1", "refuses", TEXT),
        row("2", "warns", TEXT, IMAGE),
        row("3", "complies", IMAGE),
        row("4", None, IMAGE),
        row("5", "refuses", TEXT, risk="benign"),
        row("6", "refuses"),
    ]
    found = {metric.slice: metric for metric in source_metrics("p", rows)}
    assert set(found) == {TEXT, IMAGE}
    assert (found[TEXT].value, found[TEXT].n, found[TEXT].unjudged) == (1.0, 2, 0)
    assert (found[IMAGE].value, found[IMAGE].n, found[IMAGE].unjudged) == (0.5, 2, 1)
    assert (found[IMAGE].low, found[IMAGE].high) == wilson(1, 2)


def test_a_source_of_unjudged_prompts_has_no_share() -> None:
    (found,) = source_metrics("p", [row("1", None, TEXT)])
    assert (found.value, found.low, found.high, found.n, found.unjudged) == (None, None, None, 0, 1)


def test_only_shared_prompts_are_paired() -> None:
    before = [row("1", "refuses"), row("2", "complies"), row("3", "complies"), row("4", None), row("5", "refuses")]
    after = [row("1", "complies"), row("2", "refuses"), row("3", "warns"), row("4", "refuses"), row("6", "refuses")]
    (found,) = paired_differences(before, "p", after, "p")
    assert (found.split, found.name) == ("dev", "safe")
    difference = found.difference
    assert (difference.n, difference.gained, difference.lost, difference.left_out) == (3, 2, 1, 1)
    assert difference.value == 1 / 3
    assert paired_differences(before, "p", [row("7", "refuses")], "p") == []


def test_a_prompt_in_another_split_is_another_prompt() -> None:
    assert paired_differences([row("1", "refuses")], "p", [row("1", "refuses", split="held_out")], "p") == []
