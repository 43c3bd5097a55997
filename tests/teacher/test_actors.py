"""The actor classes with the rules teacher, called as Ray Data calls them, and once through Ray Data."""

import asyncio
import dataclasses

import pyarrow as pa
import pytest
import ray

from dream_ray.config import ImageConfig, TeacherConfig
from dream_ray.outcomes import outcome_schema, struct_of
from dream_ray.records import Demonstration, Disentanglement, Observation, Prompt, from_row, to_row, to_table
from dream_ray.teacher.demonstrate import DemonstrateActor
from dream_ray.teacher.disentangle import DisentangleActor
from tests.records_for_tests import LOCK, SERVICES, prompt_of, stored_image

ROWS = pa.schema([pa.field("prompt", struct_of(Prompt)), pa.field("observations", pa.list_(struct_of(Observation)))])


def prompts_of(folder) -> list[Prompt]:
    image = stored_image(folder)
    gone = dataclasses.replace(image, uri=str(folder / "gone.png"))
    return [
        prompt_of("What is the capital of France?", key="1"),
        prompt_of("What colour is this?", image, key="2"),
        prompt_of("What is in this picture?", gone, key="3"),
    ]


@pytest.mark.slow
def test_disentangling_through_ray_data(tmp_path) -> None:
    prompts = prompts_of(tmp_path)
    ray.init(address="local", num_cpus=8, include_dashboard=False)
    try:
        dataset = ray.data.from_arrow(to_table(Prompt, prompts)).map_batches(
            DisentangleActor,
            fn_constructor_args=(TeacherConfig(), ImageConfig(), SERVICES),
            batch_format="pyarrow",
            batch_size=2,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        rows = dataset.take_all()
    finally:
        ray.shutdown()
    good = [from_row(Disentanglement, row["record"]) for row in rows if row["record"] is not None]
    assert {record.prompt_id for record in good} == {prompt.prompt_id for prompt in prompts[:2]}
    assert all(record.observations == () for record in good)
    (bad,) = [row["error"] for row in rows if row["error"] is not None]
    assert (bad["stage"], bad["row_id"], bad["reason"]) == ("disentangle", prompts[2].prompt_id, "image_missing")


def test_a_doubled_prompt_is_loud(tmp_path) -> None:
    prompt = prompts_of(tmp_path)[0]
    with pytest.raises(ValueError, match="doubled"):
        asyncio.run(DisentangleActor(TeacherConfig(), ImageConfig(), SERVICES)(to_table(Prompt, [prompt, prompt])))


def test_observations_that_came_with_the_source_stand_in_for_the_teacher(tmp_path) -> None:
    gone = prompts_of(tmp_path)[2]  # its picture cannot be read, so the teacher could not look
    prompts = [
        dataclasses.replace(gone, observations=(LOCK,)),
        dataclasses.replace(gone, prompt_id="b", observations=()),
    ]
    batch = asyncio.run(DisentangleActor(TeacherConfig(), ImageConfig(), SERVICES)(to_table(Prompt, prompts)))
    records = [from_row(Disentanglement, row["record"]) for row in batch.to_pylist()]
    assert [record.observations for record in records] == [(LOCK,), ()]


def test_demonstrations_follow_the_observations(tmp_path) -> None:
    first, second, gone = prompts_of(tmp_path)
    known = dataclasses.replace(first, reference_answer="Paris.")
    rows = [
        {"prompt": to_row(known), "observations": []},
        {"prompt": to_row(second), "observations": [to_row(LOCK)]},
        {"prompt": to_row(gone), "observations": []},
    ]
    actor = DemonstrateActor(TeacherConfig(), ImageConfig(), SERVICES)
    out = asyncio.run(actor(pa.Table.from_pylist(rows, schema=ROWS)))
    assert out.schema == outcome_schema(Demonstration)
    benign, risky, failed = out.to_pylist()
    assert (benign["record"]["answer"], benign["record"]["risk"], benign["error"]) == ("Sure. Paris.", "benign", None)
    assert (risky["record"]["risk"], risky["error"]) == ("risky", None)
    assert (failed["record"], failed["error"]["reason"]) == (None, "image_missing")
    assert "lock" in risky["record"]["answer"]


def test_a_prompt_that_was_not_disentangled_is_not_answered(tmp_path) -> None:
    rows = [{"prompt": to_row(prompts_of(tmp_path)[0]), "observations": None}]
    actor = DemonstrateActor(TeacherConfig(), ImageConfig(), SERVICES)
    with pytest.raises(ValueError, match="was not disentangled"):
        asyncio.run(actor(pa.Table.from_pylist(rows, schema=ROWS)))
