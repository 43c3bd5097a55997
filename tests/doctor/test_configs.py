"""The configs for real hardware load, and by the doctor's estimate they fit on it."""

from pathlib import Path

import pytest

from dream_ray.config import VllmConfig, load_config
from dream_ray.doctor.check import Machine, examine
from tests.conftest import REPOSITORY
from tests.doctor.published import publish

CONFIGS = REPOSITORY / "configs"
HARDWARE = {
    "llava-7b": (8, 8),
    "llava-7b-full": (8, 8),
    "qwen2.5-vl-3b-24gb": (1, 1),
    "qwen2.5-vl-7b": (8, 8),
    "qwen2.5-vl-32b": (32, 32),
}
"""GPUs that a config trains and samples on."""


def test_every_config_is_known_here() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {"local", "cluster", *HARDWARE}


@pytest.mark.parametrize("name", HARDWARE)
def test_it_loads_and_fits(name: str, tmp_path: Path) -> None:
    path = CONFIGS / f"{name}.yaml"
    config = load_config(path)
    models = {config.student.model: "student.model"}
    settings = []
    for role, chat in (("teacher", config.teacher.chat), ("judge", config.judge.chat)):
        if isinstance(chat, VllmConfig):
            settings.append(f"{role}.chat.model={_folder(chat.model, tmp_path)}")
    settings += [f"{setting}={_folder(model, tmp_path)}" for model, setting in models.items()]
    found = examine(load_config(path, settings), Machine(config.cluster.gpu_gib, 64))
    assert found.fits, [(item.name, item.problem, item.advice) for item in found.findings]
    assert (found.training_gpus, found.sampling_gpus) == HARDWARE[name]


def _folder(model: str, below: Path) -> Path:
    name = model.rsplit("/", 1)[-1]
    return below / name if (below / name).exists() else publish(below, name)
