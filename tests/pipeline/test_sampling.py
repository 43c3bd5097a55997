"""Which prompts a round samples."""

from dream_ray.pipeline.plans import parts_of_round


def test_rounds_share_out_the_parts() -> None:
    parts = [f"train-00-{index:06d}" for index in range(10)]
    first, second, third = (parts_of_round(parts, number, 0.5) for number in (1, 2, 3))
    assert sorted(first + second) == parts
    assert third == first
    assert first != sorted(first)
    assert sorted(parts_of_round(parts, 1, 1.0)) == parts
    assert len(parts_of_round(parts, 4, 0.25)) == 3
    assert parts_of_round([], 1, 0.5) == []
