"""A job as it is submitted to a cluster whose machines come and go: three nodes, where one kind stands for those with GPUs.

The teacher is an endpoint that answers no further than it is told, so that "in the middle" is the same moment each time.
"""

import asyncio
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.chat.openai_server import OpenAIServer
from tests.cluster.autoscaling import AutoscalingCluster, autoscaling_cluster, wait_until
from tests.conftest import REPOSITORY
from tests.object_store import ObjectStore, object_store

pytestmark = [pytest.mark.slow, pytest.mark.longest]

PROMPTS, PART = 24, 2
RUN = "runs/try"
JOB_SECONDS = 720.0
"""Longest that a step of a job may take; on two idle cores the longest takes about 50 s."""


@dataclass
class Teacher(OpenAIServer):
    """Answers questions below `told`; the others wait until it is raised."""

    told: int = 0

    async def _act(self, fault: Any, call: Any, *connection: Any) -> bool:
        while call.question >= self.told:
            await asyncio.sleep(0.02)
        return await super()._act(fault, call, *connection)


def seen(question: int, body: dict[str, Any]) -> str:
    """One risk in every third prompt; of those, every other one is confirmed."""
    if "observations" not in json.dumps(body["response_format"]):
        return json.dumps({"answer": "Yes" if question % 2 else "No"})
    risk = {"content": f"question {question} names a risk", "source": "text instruction", "category": "Violence"}
    return json.dumps({"observations": [] if question % 3 else [risk]})


def expected(question: int) -> tuple[int, int]:
    """How many observations of a prompt are kept and rejected."""
    return (0, 0) if question % 3 else (1, 0) if question % 2 else (0, 1)


@pytest.fixture
def store(student: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with object_store(monkeypatch) as running:
        running.upload(student, "models/student")
        lines = [{"id": f"{n:02d}", "turns": [{"text": f"question {n}"}], "split": "train"} for n in range(PROMPTS)]
        running.objects["data/prompts.jsonl"] = "\n".join(map(json.dumps, lines)).encode()
        yield running


@pytest.fixture
def cluster(store: ObjectStore) -> Iterator[AutoscalingCluster]:
    with autoscaling_cluster({"CPU": 4, "engine": 1}, most=2) as running:
        yield running


def submit(client: JobSubmissionClient, teacher: Teacher, *arguments: str, cpus: int = 0) -> str:
    """Submit jobs/disentangle.py as cluster/submit.sh does; the job's id."""
    text = (REPOSITORY / "cluster" / "submit.sh").read_text()
    (runtime_env,) = re.findall(r"--runtime-env-json '(.*?)'", text, re.S)
    chat = f"{{backend: openai, model: m, base_url: '{teacher.base_url}', api_key_env: '', max_concurrency: 4}}"
    settings = (
        "student.model=s3://models/student", "sources=[{path: s3://data/prompts.jsonl}]", f"teacher.chat={chat}",
        f"part_rows={PART}", "teacher.actors=2", "cluster.resources={teacher: {engine: 1}}", "cluster.wait_for_nodes_s=100",
    )  # fmt: skip
    command = ["python", "jobs/disentangle.py", "--config", "configs/local.yaml", *arguments, *settings]
    return client.submit_job(
        entrypoint=" ".join(f'"{word}"' for word in command),
        runtime_env=json.loads(runtime_env) | {"working_dir": str(REPOSITORY)},
        entrypoint_num_cpus=cpus,
    )


def ended(client: JobSubmissionClient, job: str) -> JobStatus:
    wait_until(f"the end of {job}", lambda: client.get_job_status(job).is_terminal(), JOB_SECONDS)
    return client.get_job_status(job)


def until(what: str, true: Callable[[], bool], client: JobSubmissionClient, job: str) -> None:
    """Wait for what a job does; says the end of its log where it does not."""
    try:
        wait_until(what, lambda: true() or client.get_job_status(job).is_terminal(), JOB_SECONDS)
        assert true(), f"{job} ended {client.get_job_status(job)} before: {what}"
    except AssertionError as error:
        raise AssertionError(f"{error}\n{client.get_job_logs(job)[-6000:]}") from None


def finished_parts(store: ObjectStore) -> set[str]:
    return {
        place.rsplit("/", 1)[1]
        for place in list(store.objects)
        if f"{RUN}/stages/disentangle/" in place and "/parts/" in place
    }


def rows(store: ObjectStore, kind: str) -> list[dict[str, Any]]:
    pattern = re.compile(rf"{RUN}/stages/disentangle/[^/]+/{kind}/[^/]+\.parquet")
    return [
        row
        for place, content in store.objects.items()
        if pattern.fullmatch(place)
        for row in pq.read_table(io.BytesIO(content)).to_pylist()
    ]


@pytest.mark.timeout(2700)
def test_a_job_brings_machines_up_survives_a_stop_and_a_lost_machine_and_lets_them_go(
    cluster: AutoscalingCluster, store: ObjectStore
) -> None:
    with pytest.raises(AuthenticationError, match="Missing authentication token"):
        JobSubmissionClient(cluster.dashboard, headers={"Authorization": ""})
    client = JobSubmissionClient(cluster.dashboard, headers=cluster.headers)
    where = ("--run-dir", f"s3://{RUN}")
    assert cluster.nodes() == set()
    with Teacher(answer=seen) as teacher:
        # Results in the copy of the working directory would be lost: refused at once, and the job's status says so.
        lost = submit(client, teacher)
        assert ended(client, lost) is JobStatus.FAILED
        assert client.get_job_info(lost).driver_exit_code == 2
        assert "would lie in the copy of the working directory" in client.get_job_logs(lost)
        assert cluster.nodes() == set()

        # The driver runs on a worker, which comes up for it; it is stopped in the middle.
        teacher.told = 8
        stopped = submit(client, teacher, *where, cpus=1)
        until("two parts of the first job", lambda: len(finished_parts(store)) >= 2, client, stopped)
        assert client.get_job_info(stopped).driver_node_id in cluster.nodes()
        client.stop_job(stopped)
        assert ended(client, stopped) is JobStatus.STOPPED
        assert not any("/disentangle/" in place and place.endswith("manifest.json") for place in store.objects)
        assert not any(place.endswith("/lease.json") for place in store.objects)
        kept = finished_parts(store)
        asked = dict(teacher.delivered)

        # The same command goes on from the head; a worker is lost in the middle.
        teacher.told = 16
        last = submit(client, teacher, *where)
        until("more parts", lambda: len(finished_parts(store)) > len(kept) + 1, client, last)
        wait_until("three nodes", lambda: len(cluster.nodes()) == 2, JOB_SECONDS)
        victim = min(cluster.nodes())
        cluster.kill(victim)
        wait_until("one node less", lambda: victim not in cluster.nodes(), JOB_SECONDS)
        teacher.told = PROMPTS
        assert ended(client, last) is JobStatus.SUCCEEDED, client.get_job_logs(last)[-3000:]
        said = client.get_job_logs(last)

    # The result is that of an undisturbed run, and what was finished before the stop was not asked about again.
    found = rows(store, "data")
    texts = {row["prompt_id"]: row for row in found}
    assert len(texts) == len(found) == PROMPTS
    assert sorted((len(row["observations"]), row["rejected"]) for row in found) == sorted(map(expected, range(PROMPTS)))
    assert rows(store, "errors") == []
    done_before = {question for question in asked if f"train-00-{question // PART:06d}.json" in kept}
    assert done_before
    assert all(teacher.delivered[question] == asked[question] for question in done_before)
    assert "parts were finished by an earlier attempt" in said
    # Beside what Ray says of machines that come and go.
    assert len([line for line in said.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]) < 30, said

    wait_until("all workers gone", lambda: not cluster.nodes(), JOB_SECONDS)
