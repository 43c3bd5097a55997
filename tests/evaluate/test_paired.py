"""Two policies on the same prompts."""

import pytest

from dream_ray.evaluate.paired import Comparison, paired_bootstrap


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


def changed(gained: int, lost: int, n: int, wants_high: bool = True) -> Comparison:
    before = {str(index): gained <= index < gained + lost for index in range(n)}
    after = {str(index): index < gained for index in range(n)}
    return Comparison("a", "b", "xstest", "a number", wants_high, paired_bootstrap(before, after, seed=0))


def test_the_exact_test_of_the_changed_prompts() -> None:
    assert changed(0, 0, 50).difference.p_value == 1
    assert changed(5, 0, 50).difference.p_value == pytest.approx(2 / 2**5)
    # Of ten changed prompts two or fewer one way: (1 + 10 + 45) of 1024, on either side.
    assert changed(2, 8, 50).difference.p_value == pytest.approx(2 * 56 / 1024)
    assert changed(4, 4, 50).difference.p_value == 1
    # Many: the normal approximation with continuity correction gives z = (200 - 1) / sqrt(2200) = 4.243.
    assert changed(1200, 1000, 3000).difference.p_value == pytest.approx(2.21e-5, rel=0.02)


def test_a_change_is_called_better_or_worse_only_beyond_chance() -> None:
    assert changed(0, 20, 50, wants_high=False).verdict == "better"
    assert changed(0, 20, 50).verdict == "worse"
    assert changed(20, 0, 50).verdict == "better"
    assert changed(2, 1, 50).verdict == ""
    assert changed(0, 0, 50).verdict == ""
    assert changed(0, 0, 0).verdict == ""


def test_a_few_changes_one_way_are_no_change_whatever_the_bootstrap_says() -> None:
    few = changed(4, 0, 50)
    assert few.difference.low is not None
    assert few.difference.low > 0
    assert few.verdict == ""
    assert changed(6, 0, 50).verdict == "better"
