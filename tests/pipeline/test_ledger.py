"""The ledger: payments of all actors and attempts, on storage within a second, and a pass that the budget stops."""

import asyncio
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from dream_ray.chat.cache import CachedChat
from dream_ray.chat.factory import ChatServices
from dream_ray.chat.meter import MeteredChat
from dream_ray.chat.protocol import ChatReply, ChatRequest
from dream_ray.config import Config, OpenAIConfig, load_config
from dream_ray.outcomes import outcome_table
from dream_ray.pipeline.data_stages import labelled, route_of
from dream_ray.pipeline.ledger import SAVE_EVERY_S, Ledger, LedgerMeter
from dream_ray.pipeline.parts import BudgetReached, Target, WorkItem, run_pass, write_part
from dream_ray.pipeline.payments import ledger_uri, paid_before, run_is_paid
from dream_ray.pipeline.run import Outcome, Run
from dream_ray.records import Disentanglement, Prompt, from_table, to_table
from dream_ray.teacher.disentangle import disentangle
from tests.conftest import REPOSITORY
from tests.records_for_tests import prompt_of


def test_attempts_add_up_and_nothing_waits_longer_than_a_second(tmp_path: Path) -> None:
    folder = str(tmp_path / "ledger")

    async def attempt(budget: float | None) -> float:
        ledger = Ledger(folder, budget)
        await ledger.begin("disentangle")
        for _ in range(10):
            await ledger.add(0.1)
        assert sum(paid_before(folder).values()) < await ledger.spent()
        await asyncio.sleep(SAVE_EVERY_S + 0.3)
        assert sum(paid_before(folder).values()) == pytest.approx(await ledger.spent())
        await ledger.begin("base/judge")
        await ledger.add(0.5)
        assert await ledger.end() == pytest.approx(0.5)
        await ledger.begin("sft")
        assert await ledger.end() == 0
        return await ledger.left()

    assert asyncio.run(attempt(2.0)) == pytest.approx(0.5)
    assert asyncio.run(attempt(2.0)) == pytest.approx(-1.0)
    assert asyncio.run(attempt(None)) == float("inf")
    assert paid_before(folder) == {"disentangle": pytest.approx(3.0), "base/judge": pytest.approx(1.5)}
    assert len(list((tmp_path / "ledger").iterdir())) == 3


class Remote:
    """Stands for the actor's handle: counts how often it is asked."""

    def __init__(self, left: float):
        self.value, self.asked, self.added = left, 0, 0.0
        self.left = self.add = self

    async def _left(self) -> float:
        self.asked += 1
        await asyncio.sleep(0.001)
        return self.value

    def remote(self, *usd: float) -> object:
        if usd:
            self.added += usd[0]
            return None
        return self._left()


def test_a_meter_asks_once_a_second_and_counts_its_own_payments() -> None:
    ledger = Remote(left=1.0)
    meter = LedgerMeter(ledger)

    async def questions() -> list[bool]:
        found = await asyncio.gather(*(meter.exhausted() for _ in range(50)))
        await meter.paid(0.6)
        found.append(await meter.exhausted())
        await meter.paid(0.6)
        found.append(await meter.exhausted())
        return found

    assert asyncio.run(questions()) == [False] * 51 + [True]
    assert (ledger.asked, ledger.added) == (1, pytest.approx(1.2))
    spent = LedgerMeter(Remote(left=0.0))

    async def from_the_start() -> list[bool]:
        return await asyncio.gather(*(spent.exhausted() for _ in range(5)))

    assert asyncio.run(from_the_start()) == [True] * 5


def config_of(tmp_path: Path, budget: float | None) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text("name: money\nstudent: {model: none}\nsources: [{path: none.jsonl}]\n")
    chat = "{backend: openai, model: m, max_concurrency: 2, price: {prompt: 10}}"
    return load_config(path, [f"teacher.chat={chat}", f"budget.max_cost_usd={budget or 'null'}"])


def test_a_run_is_paid_where_a_token_has_a_price(tmp_path: Path) -> None:
    config = config_of(tmp_path, None)
    assert run_is_paid(config)
    assert not run_is_paid(config.model_copy(update={"teacher": config.judge.model_copy()}))


class CentChat:
    """An endpoint that finds nothing, at a cent a question, and says in a file that it was asked."""

    name = "cent"

    def __init__(self, log: str):
        self._log = log

    async def ask(self, request: ChatRequest) -> ChatReply:
        with open(self._log, "a") as stream:
            stream.write(json.dumps(request.fields) + "\n")
        await asyncio.sleep(0.02)
        return ChatReply("[]", prompt_tokens=1000, completion_tokens=1)


class CentTeacher:
    """The teacher's actor around it, wrapped as make_chat wraps an endpoint."""

    def __init__(self, config: OpenAIConfig, services: ChatServices, log: str):
        assert services.meter is not None
        assert services.cache_uri is not None
        metered = MeteredChat(CentChat(log), config.price, services.meter, config.max_concurrency)
        self._chat = CachedChat(metered, config, services.templates, services.cache_uri)

    async def __call__(self, block: pa.Table) -> pa.Table:
        prompts = from_table(Prompt, block.drop_columns(["job", "part"]))
        outcomes = await asyncio.gather(*(disentangle(prompt, [], self._chat) for prompt in prompts))
        return labelled(outcome_table(Disentanglement, outcomes), *route_of(block))


PROMPTS = [prompt_of(f"Question {index}", key=str(index)) for index in range(40)]


def observe(run: Run, log: Path) -> list[object]:
    """A stage whose teacher costs a cent a prompt, beside one that the budget does not concern."""
    from dream_ray.pipeline.parts import read_part

    prompts = str(log.parent / "prompts")
    for index in range(0, 40, 4):
        write_part(prompts, f"train-00-{index:06d}", to_table(Prompt, PROMPTS[index : index + 4]))
    plan = run.plans.plan("disentangle", 1, {}, {}, run.config.teacher.chat)
    copies = run.plans.plan("copy", 1, {}, {})

    def read(job: str, part: str) -> Iterable[pa.Table]:
        yield labelled(read_part(prompts, part), job, part)

    def stages(dataset: ray.data.Dataset) -> ray.data.Dataset:
        def with_copy(block: pa.Table) -> pa.Table:
            ids = [(row["record"] or {}).get("prompt_id") or row["error"]["row_id"] for row in block.to_pylist()]
            rows = to_table(Prompt, [prompt for prompt in PROMPTS if prompt.prompt_id in ids])
            return block.append_column("prompt", pa.array(rows.to_pylist()))

        return dataset.map_batches(
            CentTeacher,
            fn_constructor_args=(run.config.teacher.chat, run.services, str(log)),
            batch_format="pyarrow",
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=1),
        ).map_batches(with_copy, batch_format="pyarrow", batch_size=None)

    def work() -> Mapping[str, Outcome]:
        items = [WorkItem("disentangle", f"train-00-{index:06d}", 4) for index in range(0, 40, 4)]
        targets = [
            Target(copies.ref, Prompt, "disentangle", "prompt", "copy"),
            Target(plan.ref, Disentanglement, "disentangle", "record", "disentangle"),
        ]
        tallies = run_pass("observing", items, read, stages, targets, 0.05)
        return {key: Outcome(tally) for key, tally in tallies.items()}

    return [run.done(copies), *run.carry_out([copies, plan], work)]


@pytest.mark.slow
def test_the_budget_stops_a_pass_and_the_same_command_goes_on(cluster: None, tmp_path: Path) -> None:
    """40 cents' worth of questions against 15; then with enough: what was paid is not paid again."""
    log, target = tmp_path / "asked.jsonl", str(tmp_path / "run")
    first = Run(config_of(tmp_path, 0.15), target)
    with pytest.raises(BudgetReached) as stopped:
        observe(first, log)
    asked = len(log.read_text().splitlines())
    assert 15 <= asked <= 15 + 2
    for words in (f"disentangle: {40 - asked} of 40 rows", "allows $0.15", "Raise budget.max_cost_usd", target):
        assert words in str(stopped.value)
    assert "failed" not in str(stopped.value)
    # The stage beside it lacks no row and stands; the stopped one is not done.
    assert [done.ref.key for done in first.history] == ["copy"]
    assert sum(paid_before(ledger_uri(first.store.uri)).values()) == pytest.approx(asked * 0.01)
    with pytest.raises(BudgetReached, match="judge was not started"):
        first.require_budget()

    again = Run(config_of(tmp_path, 0.15), target)
    with pytest.raises(BudgetReached):
        observe(again, log)
    assert len(log.read_text().splitlines()) == asked

    last = Run(config_of(tmp_path, 1.0), target)
    done = observe(last, log)[-1]
    lines = log.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 40
    manifest = last.store.manifest(done.ref)
    assert (manifest.rows_out, manifest.failed, manifest.prompt_tokens) == (40, 0, 40_000)
    assert manifest.cost_usd == pytest.approx(0.40)
    assert manifest.paid_usd == pytest.approx((40 - asked) * 0.01)
    assert sum(paid_before(ledger_uri(last.store.uri)).values()) == pytest.approx(0.40)


@pytest.mark.slow
def test_the_ledger_reaches_a_serve_replica_and_survives_a_killed_driver(tmp_path: Path) -> None:
    """Payments of a replica, and of a driver that is killed a second later, are on storage."""
    script = tmp_path / "driver.py"
    script.write_text(
        "import sys, time, ray\n"
        "from ray import serve\n"
        "from dream_ray.pipeline.ledger import LedgerMeter, start_ledger\n"
        "ray.init(address='local', num_cpus=4, include_dashboard=False)\n"
        "ledger = start_ledger(sys.argv[1], 1.0)\n"
        "ray.get(ledger.begin.remote('base/judge'))\n"
        "@serve.deployment\n"
        "class Pays:\n"
        "    def __init__(self, meter): self.meter = meter\n"
        "    async def __call__(self):\n"
        "        spent = await self.meter.exhausted()\n"
        "        await self.meter.paid(0.25)\n"
        "        return spent\n"
        "handle = serve.run(Pays.bind(LedgerMeter(ledger)), route_prefix=None)\n"
        "print([handle.remote().result() for _ in range(6)], flush=True)\n"
        "time.sleep(300)\n"
    )
    driver = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "ledger")],
        stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    try:
        assert driver.stdout is not None
        line = next(line for line in driver.stdout if line.startswith("["))
        time.sleep(SAVE_EVERY_S + 1)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    # The replica knew by itself that it had spent the budget, before it asked the ledger again.
    assert line.strip() == "[False, False, False, False, True, True]"
    assert paid_before(str(tmp_path / "ledger")) == {"base/judge": pytest.approx(1.5)}


def test_a_meter_travels_without_its_memory() -> None:
    meter = pickle.loads(pickle.dumps(LedgerMeter("handle")))
    assert isinstance(meter, LedgerMeter)
    assert meter._ledger == "handle"
