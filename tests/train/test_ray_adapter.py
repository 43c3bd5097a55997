"""The plan of a training, without training."""

import pytest

from dream_ray.config import ConfigError, SftConfig
from dream_ray.train.ray_adapter import accumulation_steps


@pytest.mark.parametrize(
    ("batch", "micro", "workers", "steps"), [(8, 4, 0, 2), (8, 4, 1, 2), (8, 4, 2, 1), (32, 2, 4, 4)]
)
def test_the_batch_is_split_over_workers_and_steps(batch: int, micro: int, workers: int, steps: int):
    assert accumulation_steps(SftConfig(batch_size=batch, micro_batch_size=micro, num_workers=workers)) == steps


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"batch_size = 8 is not a multiple .* 4 x 3 = 12"):
        accumulation_steps(SftConfig(batch_size=8, micro_batch_size=4, num_workers=3))
