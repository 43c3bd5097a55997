"""Two policies on the same prompts."""

import pytest

from dream_ray.evaluate.paired import paired_bootstrap


def test_the_difference_of_shared_prompts_with_its_interval() -> None:
    before = {str(index): index < 40 for index in range(100)}
    after = {str(index): index < 10 for index in range(100)}
    found = paired_bootstrap(before, after, seed=0)
    assert (found.before, found.after, found.value) == pytest.approx((0.4, 0.1, -0.3))
    assert (found.gained, found.lost, found.n, found.left_out) == (0, 30, 100, 0)
    assert found.low is not None
    assert found.high is not None
    # 30 changes of 100: the standard error is sqrt(0.3 * 0.7 / 100) = 0.046.
    assert found.low == pytest.approx(-0.39, abs=0.02)
    assert found.high == pytest.approx(-0.21, abs=0.02)


def test_pairing_narrows_what_two_samples_would_leave_open() -> None:
    before = {str(index): index % 2 == 0 for index in range(100)}
    after = before | {str(index): True for index in range(1, 12, 2)}
    found = paired_bootstrap(before, after, seed=0)
    assert found.value == pytest.approx(0.06)
    assert found.low is not None
    assert found.low > 0  # two independent samples of 100 would leave 0.06 well inside the noise


def test_the_same_seed_gives_the_same_interval() -> None:
    before = {str(index): index % 3 == 0 for index in range(60)}
    after = {str(index): index % 4 == 0 for index in range(60)}
    assert paired_bootstrap(before, after, seed=1) == paired_bootstrap(before, after, seed=1)
    turned = paired_bootstrap(dict(reversed(before.items())), after, seed=1)
    assert turned == paired_bootstrap(before, after, seed=1)


def test_unknown_and_unshared_prompts_are_left_out_and_counted() -> None:
    before = {"a": True, "b": None, "c": False, "d": True}
    after = {"a": False, "b": True, "c": None, "e": True}
    found = paired_bootstrap(before, after, seed=0)
    assert (found.n, found.value, found.left_out) == (1, -1.0, 4)


def test_nothing_shared_is_not_known() -> None:
    found = paired_bootstrap({"a": None}, {"a": True}, seed=0)
    assert (found.value, found.low, found.high, found.n, found.left_out) == (None, None, None, 0, 1)
