"""An engine that breaks or hangs, as the threads around it see that; vLLM itself cannot be made to on demand."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest

from dream_ray.engine import engine as module
from dream_ray.engine.engine import Engine, EngineDied, EngineError, Query
from dream_ray.stopwatch import Stopwatch


class Faulty:
    """Stands for vllm.LLMEngine: answers "good" prompts, breaks or hangs with others."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.released = threading.Event()
        self.renderer = self.engine_core = SimpleNamespace(shutdown=lambda: None)

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def add_request(self, key: str, prompt: str, params: Any, lora_request: Any) -> None:
        if prompt == "refused":
            raise TypeError("no such processor")
        self.requests.append((key, prompt))

    def abort_request(self, keys: list[str]) -> None:
        self.requests = [request for request in self.requests if request[0] not in keys]

    def step(self) -> list[Any]:
        key, prompt = self.requests.pop(0)
        if prompt == "breaks":
            raise RuntimeError("an illegal memory access")
        if prompt == "hangs":
            self.released.wait()
        return [SimpleNamespace(finished=True, request_id=key, prompt=prompt)]


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    found = Faulty()
    vllm = ModuleType("vllm")
    vllm.EngineArgs = lambda **arguments: arguments  # type: ignore[attr-defined]
    vllm.LLMEngine = SimpleNamespace(from_engine_args=lambda arguments: found)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(module, "_render", lambda engine, query: query.text)
    yield found
    found.released.set()


def query(text: str) -> Query:
    return Query(text, False, (), (), SimpleNamespace(), 1, None, None)  # type: ignore[arg-type]


def test_what_breaks_the_engine_fails_what_is_in_it_and_what_comes(faulty: Faulty) -> None:
    engine = Engine({}, timeout_s=60)
    assert engine.submit([query("good")])[0].result(5).prompt == "good"
    engine.check_alive()
    for answer in engine.submit([query("breaks"), query("good")]) + engine.submit([query("good")]):
        with pytest.raises(EngineDied, match="RuntimeError: an illegal memory access"):
            answer.result(5)
    engine.close()


def test_an_engine_works_while_something_is_in_it(faulty: Faulty) -> None:
    worked = Stopwatch()
    engine = Engine({}, timeout_s=60, worked=worked)
    time.sleep(0.1)
    assert worked.seconds == 0.0
    waiting = engine.submit([query("hangs")])[0]
    time.sleep(0.2)
    faulty.released.set()
    assert waiting.result(5).prompt == "hangs"
    engine.close()
    done = worked.seconds
    assert 0.15 < done < 5
    time.sleep(0.05)
    assert worked.seconds == done


def test_an_engine_that_broke_says_so_and_not_what_it_was_asked(faulty: Faulty) -> None:
    engine = Engine({}, timeout_s=60)
    engine.submit([query("breaks")])[0].exception(5)
    with pytest.raises(EngineDied, match="RuntimeError") as caught:
        engine.check_alive()
    assert "memory" not in str(caught.value)
    engine.close()


def test_a_closed_engine_is_not_alive_and_says_so_to_who_asks_it(faulty: Faulty) -> None:
    engine = Engine({}, timeout_s=60)
    engine.close()
    with pytest.raises(EngineDied, match="closed"):
        engine.check_alive()
    assert isinstance(engine.submit([query("good")])[0].exception(5), EngineError)


def test_nobody_waits_for_an_engine_that_cannot_even_be_shut_down(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine({}, timeout_s=60)
    monkeypatch.setattr(threading, "excepthook", lambda hooked: None)
    faulty.engine_core = SimpleNamespace(shutdown=lambda: 1 / 0)
    assert isinstance(engine.submit([query("breaks")])[0].exception(5), EngineDied)
    engine._thread.join(5)
    assert isinstance(engine.submit([query("good")])[0].exception(5), EngineDied)
    with pytest.raises(EngineDied):
        engine.check_alive()


def test_an_engine_that_hangs_ends_by_its_deadline(faulty: Faulty) -> None:
    engine = Engine({}, timeout_s=0.2)
    first = engine.submit([query("hangs")])
    for answer in first + engine.submit([query("good")]):
        with pytest.raises(EngineDied, match=r"work for 0\.2 s"):
            answer.result(5)
    with pytest.raises(EngineDied):
        engine.submit([query("good")])[0].result(5)
    with pytest.raises(EngineDied, match="it hangs"):
        engine.check_alive()
    engine.close()  # comes back, though the engine does not


@pytest.mark.parametrize("busy", [True, False])
def test_an_engine_whose_process_ended_is_not_waited_for(faulty: Faulty, busy: bool) -> None:
    """As after a SIGKILL of vLLM's process on a GPU, of which its client hears nothing."""
    faulty.engine_core = SimpleNamespace(shutdown=lambda: None, resources=SimpleNamespace(engine_dead=False))
    engine = Engine({}, timeout_s=4)
    waiting = engine.submit([query("hangs")]) if busy else []
    faulty.engine_core.resources.engine_dead = True
    for answer in waiting:
        with pytest.raises(EngineDied, match="process ended"):
            answer.result(3)
    while engine._end is None:
        threading.Event().wait(0.05)
    with pytest.raises(EngineDied, match="its process ended"):
        engine.check_alive()
    with pytest.raises(EngineDied, match="process ended"):
        engine.submit([query("good")])[0].result(3)
    engine.close()


OWNS_SHARED_MEMORY = """
from multiprocessing.shared_memory import SharedMemory
import subprocess, sys
from dream_ray.engine.engine import end_process
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(SharedMemory(create=True, size=16).name, child.pid, flush=True)
end_process()
"""


def test_a_process_that_ends_itself_leaves_no_child_and_no_shared_memory() -> None:
    ended = subprocess.run([sys.executable, "-c", OWNS_SHARED_MEMORY], stdout=subprocess.PIPE, text=True, timeout=60)
    name, child = ended.stdout.split()
    assert ended.returncode == 1
    deadline = time.monotonic() + 20
    while Path("/dev/shm", name).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not psutil.pid_exists(int(child)) or psutil.Process(int(child)).status() == psutil.STATUS_ZOMBIE


def test_an_idle_engine_does_not_hang(faulty: Faulty) -> None:
    engine = Engine({}, timeout_s=0.05)
    for _ in range(3):
        assert engine.submit([query("good")])[0].result(5).prompt == "good"
        threading.Event().wait(0.2)
    engine.check_alive()
    engine.close()


def test_a_prompt_that_cannot_be_admitted_is_under_suspicion_and_an_adapter_is_not(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine({}, timeout_s=60)
    with pytest.raises(EngineDied, match="TypeError: no such processor"):
        engine.submit([query("refused")])[0].result(5)

    def no_effect(*arguments: Any) -> str:
        raise EngineError("without effect")

    monkeypatch.setattr(module, "_render", no_effect)
    with pytest.raises(EngineError, match="without effect"):
        engine.submit([query("good")])[0].result(5)
    engine.close()
