"""How far a pass, a training and an attempt are, as data: what log records carry, what status.json and progress.json hold.

Contract: no decision hangs on the clock times in it, they are for people to read. Knows where the files lie, not who works.
"""

import datetime
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from dream_ray import files

log = logging.getLogger(__name__)


def now_text() -> str:
    """The time for people: UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Progress:
    """`done` of `expected` units, at `per_second` of them; `failures` counts reasons. `at` is when this was so."""

    name: str
    unit: str
    done: int
    expected: int
    per_second: float
    failures: Mapping[str, int] = field(default_factory=dict)
    at: str = field(default_factory=now_text)

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None where there is none yet."""
        return (self.expected - self.done) / self.per_second if self.per_second > 0 else None

    @property
    def to_go(self) -> str:
        """The same for people."""
        return "time to go unknown" if self.seconds_left is None else f"{self.seconds_left:.0f} s to go"


class State(StrEnum):
    """How an attempt at a run stands, by its own words: one that was killed had no time to change them."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Attempt:
    """The latest attempt at a run. `stages` are those under way with their folders; `message` says why it ended."""

    run: str
    number: int
    state: State
    started_at: str
    updated_at: str
    stages: Mapping[str, str] = field(default_factory=dict)
    progress: Progress | None = None
    message: str = ""


def attempt_uri(run_uri: str) -> str:
    """The file that holds it."""
    return files.join(run_uri, "status.json")


def training_uri(stage_uri: str) -> str:
    """The file in a training stage's folder that says how far the training is."""
    return files.join(stage_uri, "progress.json")


def read_attempt(run_uri: str) -> Attempt | None:
    """The latest attempt, None where no attempt has started."""
    content = _read(attempt_uri(run_uri))
    if content is None:
        return None
    progress = content.pop("progress")
    state = State(content.pop("state"))
    return Attempt(**content, state=state, progress=None if progress is None else Progress(**progress))


def read_training(stage_uri: str) -> Progress | None:
    """How far a stage's training is, None where it trains nothing or has not said yet."""
    content = _read(training_uri(stage_uri))
    return None if content is None else Progress(**content)


def write_training(stage_uri: str, progress: Progress) -> None:
    """Say how far a stage's training is. A storage that fails costs the news, not the training."""
    try:
        files.write_atomic(training_uri(stage_uri), json.dumps(asdict(progress)).encode())
    except OSError as error:
        log.warning("%s cannot be written (%s); the training goes on", training_uri(stage_uri), type(error).__name__)


def _read(uri: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(files.read_bytes(uri))
    except FileNotFoundError:
        return None
    return found
