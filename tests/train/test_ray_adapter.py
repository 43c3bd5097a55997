"""The plan of a training and what a killed one leaves, without training."""

from pathlib import Path
from typing import Any

import pytest

from dream_ray.config import ConfigError, SftConfig
from dream_ray.train import scaling
from dream_ray.train.broken import no_memory
from dream_ray.train.ray_adapter import (
    RUN_NAME,
    check_reporters,
    drop_torn_checkpoints,
)
from dream_ray.train.scaling import batches, check_strategy


@pytest.mark.parametrize(
    ("batch", "micro", "workers", "steps"), [(8, 4, 0, 2), (8, 4, 1, 2), (8, 4, 2, 1), (32, 2, 4, 4)]
)
def test_the_batch_is_split_over_workers_and_steps(batch: int, micro: int, workers: int, steps: int):
    config = SftConfig(batch_size=batch, micro_batch_size=micro, num_workers=workers)
    assert batches(config, config.workers[0]) == (micro, steps)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"batch_size = 8 is not a multiple .* 4 x 3 = 12"):
        batches(SftConfig(batch_size=8, micro_batch_size=4, num_workers=3), 3)


def test_an_elastic_training_keeps_its_batch():
    config = SftConfig(batch_size=24, micro_batch_size=4, num_workers=(2, 4))
    check_strategy(config)
    cuts = [batches(config, workers) for workers in (2, 3, 4)]
    assert cuts == [(4, 3), (4, 2), (3, 2)]
    assert {size * times * workers for (size, times), workers in zip(cuts, (2, 3, 4), strict=True)} == {24}
    with pytest.raises(ConfigError, match=r"batch_size = 8 cannot be split evenly over 3 workers"):
        check_strategy(SftConfig(batch_size=8, micro_batch_size=4, num_workers=(1, 4)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": -1}, "below 0"),
        ({"num_workers": (0, 2)}, r"\[least, most\]"),
        ({"num_workers": (3, 2)}, r"\[least, most\]"),
        ({"num_workers": 0, "strategy": "fsdp2"}, "allows a single one"),
        ({"num_workers": (1, 4), "strategy": "zero3"}, "allows a single one"),
    ],
)
def test_workers_that_make_no_sense_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        SftConfig(**settings)


def test_a_strategy_that_lacks_its_package_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scaling, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package deepspeed"):
        check_strategy(SftConfig(strategy="zero3", use_gpu=True, num_workers=2))
    check_strategy(SftConfig(strategy="fsdp2", num_workers=2))


@pytest.mark.parametrize(
    ("listed", "kept"), [('{"checkpoint_results": []}', True), ('{"checkpoint_re', False), ("", False)]
)
def test_only_a_torn_list_costs_the_checkpoints(tmp_path: Path, listed: str, kept: bool) -> None:
    folder = tmp_path / RUN_NAME
    (folder / "checkpoint_1").mkdir(parents=True)
    (folder / "checkpoint_manager_snapshot.json").write_text(listed)
    drop_torn_checkpoints(str(tmp_path))
    assert (folder / "checkpoint_1").is_dir() is kept


def test_a_first_attempt_has_nothing_to_drop(tmp_path: Path) -> None:
    drop_torn_checkpoints(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_reporter_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_reporters(SftConfig())
    with pytest.raises(ConfigError, match=r"report_to names mlflow, but mlflow is not installed"):
        check_reporters(SftConfig(report_to=("mlflow",)))
    with pytest.raises(ConfigError, match="tensorboard or tensorboardX"):
        check_reporters(SftConfig(report_to=("tensorboard",)))


def test_a_lack_of_memory_names_what_is_left_to_try() -> None:
    error = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words.")
    words = no_memory(SftConfig(micro_batch_size=4), error)
    assert "lower micro_batch_size (now 4); set gradient_checkpointing: true; set bf16: true" in words
    assert "More words" not in words
    words = no_memory(SftConfig(micro_batch_size=1, use_gpu=True, bf16=True), error)
    assert not any(name in words for name in ("micro_batch_size", "gradient_checkpointing", "bf16"))
