"""`dream-ray serve` as a process, for tests."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.conftest import REPOSITORY
from tests.leftovers import segments_of

CONFIG = """
name: served
student: {model: none}
sources: [{path: none.jsonl}]
"""
STARTS_WITHIN_S = 900
"""A service with a model took 70 s on two free cores, and more than 300 s on slower ones beside two other tests."""
ENDS_WITHIN_S = 120


@contextmanager
def serving(config: Path, *overrides: str) -> Iterator[str]:
    """`dream-ray serve` as a process: what it said. It has to end with 0, to leave no process and no shared memory behind."""
    log = config.with_suffix(".log")
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "dream_ray.cli", "serve", str(config), *overrides]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=config.parent,
            env=environment | {"PYTHONPATH": str(REPOSITORY)},
        )
    children: list[psutil.Process] = []
    segments: set[Path] = set()
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while "Ctrl-C ends it." not in log.read_text():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(1)
        children = psutil.Process(process.pid).children(recursive=True)
        segments = {path for child in children for path in segments_of(child)}
        assert segments or not any("serve_model" in override for override in overrides), "an engine has some"
        yield log.read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(ENDS_WITHIN_S)
    assert code == 0, log.read_text()[-3000:]
    _, left = psutil.wait_procs(children, timeout=30)
    assert [child.name() for child in left] == []
    assert [path.name for path in segments if path.exists()] == []
