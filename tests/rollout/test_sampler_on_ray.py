"""The sampler as Ray Data runs it: a real pass, and what is left of it afterwards."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import ray.data

from dream_ray.config import ImageConfig, RolloutConfig, StudentConfig
from dream_ray.rollout.requests import SampleRequest, request_table
from dream_ray.rollout.sampler import Sampler, sampler_arguments
from tests.processes import large_processes, wait_until_none_is_left
from tests.records_for_tests import prompt_of, stored_image
from tests.rollout.conftest import request_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def no_kept_tracebacks() -> Iterator[None]:
    """Ray logs a failure with the error; pytest would keep that record, its traceback and the handles of the actors."""

    def not_of_ray(record: logging.LogRecord) -> bool:
        return not record.name.startswith("ray")

    handlers = list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(not_of_ray)
    yield
    for handler in handlers:
        handler.removeFilter(not_of_ray)


def sample(student: StudentConfig, requests: list[list[SampleRequest]]) -> list[dict[str, Any]]:
    """One pass over blocks of requests; the rows, and whether an engine was seen while it ran."""
    rollout = RolloutConfig(dtype="float32")
    blocks: list[pa.Table] = [request_table(block) for block in requests]
    dataset = ray.data.from_arrow(blocks).map_batches(
        Sampler,
        fn_constructor_args=(student, rollout, 16, ImageConfig()),
        batch_format="pyarrow",
        batch_size=None,
        **sampler_arguments(rollout),
    )
    rows = []
    for row in dataset.iter_rows():
        rows.append(row)
        assert large_processes(), "no engine was seen while rows came: this test would not notice one that is left over"
    return rows


def test_a_pass_samples_every_row_and_leaves_no_process(student: StudentConfig, adapter: str, tmp_path: Path) -> None:
    colours = ("red", "green", "blue", "white")
    prompts = [prompt_of(f"Tell me a story about {c} paint.", stored_image(tmp_path, c)) for c in colours]
    gone = prompt_of("What is this?", stored_image(tmp_path, "black"))
    (tmp_path / "black.png").unlink()
    greedy: dict[str, Any] = {"n": 1, "temperature": 0.0, "max_tokens": 16, "part": "dev-00-000000"}
    blocks = [
        [request_of(prompt) for prompt in [*prompts, gone]],
        [request_of(prompt, job="base", **greedy) for prompt in prompts],
        [request_of(prompt, job="policy-0", policy="policy-0", adapter=adapter, **greedy) for prompt in prompts],
    ]
    assert large_processes() == []
    rows = sample(student, blocks)
    wait_until_none_is_left()

    by_job = {job: [row for row in rows if row["job"] == job] for job in ("round-1", "base", "policy-0")}
    assert {job: len(found) for job, found in by_job.items()} == {"round-1": 9, "base": 4, "policy-0": 4}
    (failed,) = [row for row in rows if row["rollout"] is None]
    assert (failed["error"]["reason"], failed["error"]["row_id"]) == ("image_missing", gone.prompt_id)
    texts = {job: [row["rollout"]["text"] for row in found if row["rollout"]] for job, found in by_job.items()}
    assert all(a != b for a, b in zip(texts["base"], texts["policy-0"], strict=True))


def test_a_pass_that_fails_leaves_no_process(
    student: StudentConfig, make_adapter: Callable[[float], str], tmp_path: Path, no_kept_tracebacks: None
) -> None:
    prompt = prompt_of("Tell me a story.", stored_image(tmp_path))
    with pytest.raises(ray.exceptions.RayTaskError, match="changes nothing"):
        sample(student, [[request_of(prompt, adapter=make_adapter(0.0))]])
    wait_until_none_is_left()


def test_whole_parts_go_to_actors_with_gpus(student: Path) -> None:
    """Ray's own check stands in `map_batches` alone; where it moves, no stage with a GPU could start."""
    parts = ray.data.from_arrow([pa.table({"row": [1, 2]}), pa.table({"row": [3]})])
    options = {
        "fn_constructor_args": (StudentConfig(model=str(student)), RolloutConfig(), 16, ImageConfig()),
        "batch_format": "pyarrow", "batch_size": None, **sampler_arguments(RolloutConfig(gpus_per_engine=1)),
    }  # fmt: skip
    assert options["num_gpus"] == 1
    with pytest.raises(ValueError, match="batch_size"):
        parts.map_batches(Sampler, **options)
    parts.map_batches_internal(Sampler, **options)
