"""A stage whose teacher's endpoint hangs from some moment on: it ends, says why, and goes on when the endpoint does."""

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from dream_ray.config import Config, load_config
from dream_ray.pipeline.data_stages import WITH_OBSERVATIONS, KeepRoute, labelled
from dream_ray.pipeline.parts import EndpointSilent, Target, WorkItem, run_pass
from dream_ray.pipeline.run import Outcome, Run
from dream_ray.records import Demonstration, to_row
from dream_ray.teacher.demonstrate import DemonstrateActor
from tests.chat.openai_server import Fault, OpenAIServer
from tests.records_for_tests import prompt_of

PARTS, ROWS = 20, 4
ANSWERED = 12
"""The questions below this are answered in any case."""


def config_of(tmp_path: Path, server: OpenAIServer) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text("name: silent\nstudent: {model: none}\nsources: [{path: none.jsonl}]\n")
    chat = f"{{backend: openai, model: m, base_url: '{server.base_url}', api_key_env: '', max_concurrency: 4}}"
    return load_config(path, [f"teacher.chat={chat}", "teacher.chat.timeout_s=3", "teacher.chat.silent_deadlines=2"])


def demonstrate(run: Run) -> None:
    plan = run.plans.plan("demonstrate", 1, {}, {}, run.config.teacher.chat)
    target = Target(plan.ref, Demonstration, "demonstrate", "record", "demonstrate")

    def read(job: str, part: str) -> Iterable[pa.Table]:
        first = int(part) * ROWS
        rows = [
            {"prompt": to_row(prompt_of(f"question {n}", key=str(n))), "observations": []}
            for n in range(first, first + ROWS)
        ]
        yield labelled(pa.Table.from_pylist(rows, schema=WITH_OBSERVATIONS), job, part)

    def stages(dataset: ray.data.Dataset) -> ray.data.Dataset:
        return dataset.map_batches(
            KeepRoute,
            fn_constructor_args=(DemonstrateActor, run.config.teacher, run.config.images, run.services),
            batch_format="pyarrow",
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=1),
        )

    def work() -> Mapping[str, Outcome]:
        items = [WorkItem("demonstrate", f"{index:06d}", ROWS) for index in range(PARTS)]
        return {"demonstrate": Outcome(run_pass("demonstrate", items, read, stages, [target], 0.05)["demonstrate"])}

    run.carry_out([plan], work)


@pytest.mark.slow
def test_an_endpoint_that_hangs_ends_the_stage_and_the_same_command_goes_on(cluster: None, tmp_path: Path) -> None:
    awake = threading.Event()

    def script(question: int, earlier: int) -> Fault:
        return Fault.NONE if question < ANSWERED or awake.is_set() else Fault.HANG

    with OpenAIServer(script) as server:
        config, target = config_of(tmp_path, server), str(tmp_path / "run")
        first = Run(config, target)
        with pytest.raises(EndpointSilent) as stopped:
            demonstrate(first)
        for words in ("demonstrate: ", server.base_url, "2 deadlines of 3 s", "the same command again"):
            assert words in str(stopped.value)
        assert first.history == []
        hung = {call.question for call in server.calls} - set(server.delivered)
        assert len(hung) < PARTS * ROWS / 2
        awake.set()
        last = Run(config, target)
        demonstrate(last)
        (done,) = last.history
        manifest = last.store.manifest(done.ref)
        assert (manifest.rows_out, manifest.failed) == (PARTS * ROWS, 0)
        assert server.delivered == dict.fromkeys(range(PARTS * ROWS), 1)
