"""How far a pass or a training is, as data: what log records carry, and what status.json and progress.json hold.

Contract: pure; the clock time in it is for people to read, nothing is decided by it.
"""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field


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
