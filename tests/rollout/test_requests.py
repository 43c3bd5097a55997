"""Requests and seeds, without an engine."""

import pytest

from dream_ray.records import from_table
from dream_ray.rollout.requests import SEED_LIMIT, SampleRequest, request_table, sample_seed
from tests.records_for_tests import prompt_of
from tests.rollout.conftest import request_of


def test_a_table_gives_the_requests_back() -> None:
    requests = [
        request_of(prompt_of("a")),
        request_of(prompt_of("b"), adapter="s3://bucket/adapter", n=1, temperature=0.0),
    ]
    assert from_table(SampleRequest, request_table(requests)) == requests


def test_seeds_are_stable_and_apart() -> None:
    # The value is fixed: another one would make every finished run's samples irreproducible.
    assert sample_seed(0, "prompt-0123456789abcdef", 1) == 1050254989
    seeds = {sample_seed(run, f"prompt-{i}", round) for run in range(3) for i in range(100) for round in range(3)}
    assert len(seeds) == 900
    assert all(0 <= seed < SEED_LIMIT - 2**16 for seed in seeds)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"n": 0}, "n = 0"), ({"n": 2, "temperature": 0.0}, "temperature 0"), ({"seed": SEED_LIMIT - 1}, "sample_seed")],
)
def test_what_the_engine_would_refuse_is_refused_at_once(changes: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        request_of(prompt_of("a"), **changes)
