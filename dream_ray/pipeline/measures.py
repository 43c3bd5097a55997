"""What a run tells Prometheus, through Ray's metrics endpoint, where Grafana's board and the alerts read it.

Contract: the names of the run's metrics, and one function for each way in which they change. The driver counts what its
passes finish, the ledger what is paid, and the book of GPU seconds those; each metric is made at its first use, in the
process that counts. Ray adds the prefix `ray_` and the session's name. The scorer's own are in feedback/measures.py.
docs/monitoring.md says what each means.
"""

from collections.abc import Mapping
from functools import cache

from ray.util.metrics import Counter, Gauge

ROWS = "dream_ray_rows_total"
"""Rows that a stage finished, by `stage` and `outcome`: "done", or the reason of the failure."""
TOKENS = "dream_ray_tokens_total"
"""Tokens of a stage's rows, by `stage` and `kind`: "prompt" or "completion"."""
WAITING = "dream_ray_rows_waiting"
"""Rows of the pass under way that are not through yet, by `pass`; 0 once it has ended."""
PAID = "dream_ray_paid_usd_total"
"""What was paid for teacher and judge, by `stage`; only where their tokens have prices."""
GPU_SECONDS = "dream_ray_gpu_seconds_total"
"""Seconds that engines of ours held a GPU, times their GPUs, by `stage` and `state`: "worked" or "idle"."""

NAMES = (ROWS, TOKENS, WAITING, PAID, GPU_SECONDS)

DONE = "done"
"""The outcome of a row that did not fail."""


@cache
def _counter(name: str, *tags: str) -> Counter:
    return Counter(name, description="See docs/monitoring.md.", tag_keys=tags)


@cache
def _waiting() -> Gauge:
    return Gauge(WAITING, description="See docs/monitoring.md.", tag_keys=("pass",))


def count_rows(stage: str, done: int, failures: Mapping[str, int]) -> None:
    """Rows that a stage finished."""
    for outcome, rows in {DONE: done, **failures}.items():
        _add(_counter(ROWS, "stage", "outcome"), rows, {"stage": stage, "outcome": outcome})


def count_tokens(stage: str, prompt: int, completion: int) -> None:
    """Tokens of a stage's rows."""
    for kind, tokens in {"prompt": prompt, "completion": completion}.items():
        _add(_counter(TOKENS, "stage", "kind"), tokens, {"stage": stage, "kind": kind})


def show_waiting(pass_name: str, rows: int) -> None:
    """Rows of a pass that are not through."""
    _waiting().set(rows, {"pass": pass_name})


def count_paid(stage: str, usd: float) -> None:
    """A payment."""
    _add(_counter(PAID, "stage"), usd, {"stage": stage})


def count_gpu_seconds(stage: str, worked: float, idle: float) -> None:
    """GPU seconds of a stage."""
    for state, seconds in {"worked": worked, "idle": idle}.items():
        _add(_counter(GPU_SECONDS, "stage", "state"), seconds, {"stage": stage, "state": state})


def _add(counter: Counter, value: float, tags: dict[str, str]) -> None:
    if value > 0:  # Ray refuses 0
        counter.inc(value, tags)
