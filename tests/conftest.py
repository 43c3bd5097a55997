"""Shared by all tests: the environment of workers, and what is expensive to make once."""

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dream_ray.cpu import WAITING

# Before Ray or transformers are imported: workers inherit it, and nothing asks a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As in a run.
os.environ.update(WAITING | os.environ)
# Ray's workers are nice (15), so that beside the test of another process they get 1 % of a core, and time out.
os.environ.setdefault("RAY_worker_niceness", "0")


def keep_to_own_cores() -> None:
    """Each process of pytest-xdist takes its share of the cores: engines and trainings of several that compute on all cores
    at once wait for each other. Processes beyond the number of cores take what the others leave idle, anywhere."""
    cores = sorted(os.sched_getaffinity(0))
    processes = min(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), len(cores))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    if number < processes:
        os.sched_setaffinity(0, cores[number::processes])


keep_to_own_cores()

# Tests that run in the background ignore Ctrl-C, and commands inherit that; some of them are to be ended by it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files without a test of the chosen part are not imported: with what they import that takes seconds, in each process."""
    if not collection_path.match("test_*.py"):
        return None
    text = collection_path.read_text()
    unwanted = {
        "not slow": re.search(r"^pytestmark = .*\bslow\b", text, re.MULTILINE) is not None,
        "slow": "mark.slow" not in text,
    }
    return unwanted.get(config.option.markexpr) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, or one process would have nothing to do while they run."""
    items.sort(key=lambda item: item.get_closest_marker("longest") is None)


REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For temporary files of commands that start Ray: below pytest's own folder the names of its sockets would be too long."""
    with tempfile.TemporaryDirectory(prefix="test-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data sets that are not part of the project; tests that need them skip where they are absent."""
    folder = Path(os.environ.get("DREAM_RAY_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the public data sets in {folder} (set DREAM_RAY_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def student() -> Path:
    """The demo's student, built once and kept in build/, as `make demo` does."""
    from dream_ray.train.local_student import build_local_student

    return build_local_student(REPOSITORY / "build" / "student")
