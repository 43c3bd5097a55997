"""The engine's thread around an engine that breaks on command; vLLM itself runs in the slow tests of its users."""

import sys
import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from dream_ray.engine.engine import Answer, Engine, EngineError, Query

QUERY = Query("Hello", True, (), (), None, 1, None, None)  # type: ignore[arg-type]


class BreakingEngine:
    """As much of vLLM's LLMEngine as the thread touches without a prompt."""

    def __init__(self) -> None:
        self.to_break, self.stepped = threading.Event(), threading.Event()
        self.renderer = self.engine_core = SimpleNamespace(shutdown=lambda: None)

    def has_unfinished_requests(self) -> bool:
        return self.to_break.is_set()

    def step(self) -> list[Any]:
        self.stepped.set()
        raise MemoryError("words of a prompt")


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> BreakingEngine:
    breaking = BreakingEngine()
    made = SimpleNamespace(from_engine_args=lambda arguments: breaking)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(EngineArgs=dict, LLMEngine=made))
    return breaking


def test_an_engine_that_broke_says_so_and_not_what_it_was_asked(vllm: BreakingEngine) -> None:
    engine = Engine({})
    engine.check_alive()
    vllm.to_break.set()
    engine.submit([])
    assert vllm.stepped.wait(10)
    (answer,) = engine.submit([QUERY])
    assert isinstance(answer.exception(10), MemoryError)
    with pytest.raises(EngineError, match="MemoryError") as caught:
        engine.check_alive()
    assert "prompt" not in str(caught.value)
    engine.close()


def test_a_closed_engine_is_not_alive(vllm: BreakingEngine) -> None:
    engine = Engine({})
    engine.close()
    with pytest.raises(EngineError, match="ended"):
        engine.check_alive()


def test_nobody_waits_for_an_engine_that_cannot_even_be_shut_down(
    vllm: BreakingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine({})
    waiting: Answer = Future()
    engine._pending["1"] = waiting
    monkeypatch.setattr(threading, "excepthook", lambda hooked: None)
    vllm.engine_core = SimpleNamespace(shutdown=lambda: 1 / 0)
    vllm.to_break.set()
    engine.submit([])
    assert isinstance(waiting.exception(10), MemoryError)
    engine._thread.join(10)
    with pytest.raises(EngineError):
        engine.check_alive()
