"""Each actor that is guarded: a row that is set aside fits beside the rows that the actor made, as its stage's error."""

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dream_ray.config import ImageConfig, RulesConfig, TeacherConfig
from dream_ray.evaluate.benchmarks.grade import GradeActor
from dream_ray.outcomes import struct_of
from dream_ray.pipeline.data_stages import WITH_OBSERVATIONS, KeepRoute, labelled
from dream_ray.pipeline.guard import KILLED, Flight, Guarded, flight_uri, write_flight
from dream_ray.records import ErrorRow, Prompt, Rollout, to_row, to_table
from dream_ray.rollout.requests import request_table
from dream_ray.rollout.sampler import Sampler, _table
from dream_ray.teacher.demonstrate import DemonstrateActor
from dream_ray.teacher.disentangle import DisentangleActor
from tests.records_for_tests import SERVICES, prompt_of, rollout_of
from tests.rollout.conftest import request_of

PROMPTS = [prompt_of(f"How do I open a lock that is not mine, number {key}?", key=str(key)) for key in range(3)]
ROLLOUTS = [rollout_of(prompt, 0, "I would rather not.") for prompt in PROMPTS]
TEACHING = (TeacherConfig(), ImageConfig(), SERVICES)


def answers() -> pa.Table:
    rows = [
        {"prompt": to_row(prompt), "rollout": to_row(rollout), "error": None}
        for prompt, rollout in zip(PROMPTS, ROLLOUTS, strict=True)
    ]
    kinds = (("prompt", Prompt), ("rollout", Rollout), ("error", ErrorRow))
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, struct_of(kind)) for name, kind in kinds]))


ROWS = [{"prompt": to_row(prompt), "observations": []} for prompt in PROMPTS]
GUARDED: dict[str, tuple[pa.Table, tuple[Any, ...], str]] = {
    "disentangle": (to_table(Prompt, PROMPTS), (KeepRoute, DisentangleActor, *TEACHING), PROMPTS[1].prompt_id),
    "demonstrate": (
        pa.Table.from_pylist(ROWS, schema=WITH_OBSERVATIONS),
        (KeepRoute, DemonstrateActor, *TEACHING),
        PROMPTS[1].prompt_id,
    ),
    "judge": (
        answers(),
        (GradeActor, RulesConfig(), ImageConfig(), SERVICES, {"job": "xstest"}),
        ROLLOUTS[1].rollout_id,
    ),
}


@pytest.mark.parametrize("stage", GUARDED)
def test_a_row_that_is_set_aside_stands_among_those_of_the_actor(tmp_path: Path, stage: str) -> None:
    rows, actor, row_id = GUARDED[stage]
    block = labelled(rows, "job", "p0")
    whole = asyncio.run(Guarded(str(tmp_path), *actor)(block))
    write_flight(flight_uri(str(tmp_path), "job", "p0"), Flight(2, killed=((1, "a crash"),)))
    found = asyncio.run(Guarded(str(tmp_path), *actor)(block))
    assert found.schema == whole.schema
    assert [found.slice(at, 1).to_pylist() for at in (0, 2)] == [whole.slice(at, 1).to_pylist() for at in (0, 2)]
    error = found.to_pylist()[1]["error"]
    assert (error["stage"], error["row_id"], error["reason"], error["detail"]) == (stage, row_id, KILLED, "a crash")


def test_a_request_that_is_set_aside_has_the_columns_of_a_sampled_one() -> None:
    row = request_table([request_of(PROMPTS[0])])
    found = Sampler.set_aside(row, KILLED, "a crash", 3)
    assert found.schema == _table(row, [[ROLLOUTS[0]]]).schema
    (error,) = found["error"].to_pylist()
    assert (error["stage"], error["row_id"], error["attempts"]) == ("rollout", PROMPTS[0].prompt_id, 3)
    assert found["rollout"].to_pylist() == [None]
