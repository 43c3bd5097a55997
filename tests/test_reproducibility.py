"""The same config and seed give the same prompts, seeds, pairs and metrics, in another process too.

What an engine samples is left out: docs/evaluate.md says what of it is bit-exact.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def deterministic_parts(folder: Path, seed: int, hash_seed: str) -> dict[str, object]:
    """All that a run computes without an engine, from another process with its own hash order."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.deterministic", str(folder), str(seed)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_and_another_one_other_samples(tmp_path: Path) -> None:
    one, two = (deterministic_parts(tmp_path / name, 0, hash_seed) for name, hash_seed in (("a", "1"), ("b", "2")))
    assert one.keys() == two.keys()
    for name in one:
        assert one[name] == two[name], name
    assert one["pairs"]
    other = deterministic_parts(tmp_path / "c", 1, "1")
    assert other["prompts"] == one["prompts"]
    for name in ("seeds", "pairs", "fingerprint"):
        assert other[name] != one[name], name
