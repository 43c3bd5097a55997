"""Which numbers end a round."""

import pytest

from dream_ray.config import CollapseConfig
from dream_ray.train.bounds import out_of_bounds

BOUNDS = CollapseConfig(max_margin=4.0, max_kl=30.0, max_length_ratio=2.0, max_benign_refusal=0.25)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"rewards/margins": 4.1}, "rewards/margins = 4.1 is above dpo.stop.max_margin = 4"),
        ({"kl": 31.0}, "kl = 31 is above dpo.stop.max_kl = 30"),
        ({"probe/refused": 0.3}, "probe/refused = 0.3 is above dpo.stop.max_benign_refusal = 0.25"),
        ({"probe/words": 41.0}, "41.0 words, 2.05 times the 20.0 before"),
        ({"probe/words": 9.0}, "9.0 words, 0.45 times the 20.0 before"),
    ],
)
def test_a_number_out_of_bounds_is_named(numbers: dict[str, float], words: str):
    assert words in out_of_bounds(numbers, 20.0, BOUNDS)
    assert not out_of_bounds(numbers, 20.0, CollapseConfig())


def test_numbers_within_their_bounds_go_on():
    numbers = {"rewards/margins": 4.0, "kl": -2.0, "probe/refused": 0.25, "probe/words": 40.0, "loss": 900.0}
    assert not out_of_bounds(numbers, 20.0, BOUNDS)
    assert not out_of_bounds({"loss": 0.1}, 20.0, BOUNDS)
    assert not out_of_bounds({"probe/words": 900.0}, 0.0, BOUNDS)
