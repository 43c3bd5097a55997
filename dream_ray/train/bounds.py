"""Which numbers of a DPO round end it: the bounds of `dpo.stop`, checked against a log entry.

Contract: pure. Who asks, and what then happens, is in collapse.py.
"""

import math
from collections.abc import Mapping

from dream_ray.config import CollapseConfig


def out_of_bounds(numbers: Mapping[str, float], words_before: float | None, bounds: CollapseConfig) -> str:
    """Why a log entry's numbers are out of bounds, "" where they are not. Numbers that it lacks are not judged."""
    limits = (
        ("rewards/margins", bounds.max_margin, "max_margin"),
        ("kl", bounds.max_kl, "max_kl"),
        ("probe/refused", bounds.max_benign_refusal, "max_benign_refusal"),
    )
    for name, most, setting in limits:
        if most is not None and numbers.get(name, -math.inf) > most:
            return f"{name} = {numbers[name]:.3g} is above dpo.stop.{setting} = {most:g}"
    most = bounds.max_length_ratio
    if most is not None and words_before and "probe/words" in numbers:
        ratio = numbers["probe/words"] / words_before
        if not 1 / most <= ratio <= most:
            return (
                f"answers to benign prompts have {numbers['probe/words']:.1f} words, {ratio:.2f} times the {words_before:.1f} "
                f"before the round, beyond dpo.stop.max_length_ratio = {most:g}"
            )
    return ""
