"""What fits, what does not, and the change that is named makes it fit; `dream-ray doctor` as a user runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dream_ray.cli import app
from dream_ray.config import Config, ConfigError, load_config
from dream_ray.doctor.check import Diagnosis, Finding, Machine, examine
from tests.conftest import REPOSITORY
from tests.doctor.published import publish

LOCAL = REPOSITORY / "configs" / "local.yaml"
ON_GPUS = [
    "sft.use_gpu=true",
    "sft.bf16=true",
    "dpo.use_gpu=true",
    "dpo.bf16=true",
    "rollout.gpus_per_engine=1",
    "rollout.dtype=bfloat16",
]


@pytest.fixture
def qwen(tmp_path: Path) -> str:
    return f"student.model={publish(tmp_path, 'Qwen2.5-VL-7B-Instruct')}"


ADAPTER = "lora.target_modules=.*language_model.*_proj"


def local(*settings: str) -> Config:
    return load_config(LOCAL, [ADAPTER, *settings])


def named(found: Diagnosis, name: str) -> Finding:
    return next(item for item in found.findings if item.name.startswith(name))


def test_a_change_that_is_named_makes_it_fit(qwen: str) -> None:
    machine = Machine(23.9, 64)
    settings = [qwen, *ON_GPUS, "student.max_model_len=1024", "dpo.micro_batch_size=8", "dpo.batch_size=8"]
    before = named(examine(local(*settings), machine), "dpo")
    assert "23.9" not in before.problem
    assert "21.5 GiB may be used" in before.problem
    change = re.search(r"dpo\.micro_batch_size=\d+", before.advice)
    assert change
    after = named(examine(local(*settings, change[0]), machine), "dpo")
    assert not after.problem
    assert after.total < before.total


def test_bf16_is_advised_before_smaller_batches(qwen: str) -> None:
    found = named(examine(local(qwen, *ON_GPUS, "sft.bf16=false"), Machine(31, 64)), "sft")
    assert found.advice.startswith("set sft.bf16=true:")


def test_an_engine_that_is_too_large_names_the_gpus_that_hold_it(qwen: str) -> None:
    found = named(examine(local(qwen, *ON_GPUS), Machine(16, 64)), "student engine")
    assert "before the KV cache" in found.problem
    assert "rollout.gpus_per_engine=2" in found.advice
    split = named(examine(local(qwen, *ON_GPUS, "rollout.gpus_per_engine=2"), Machine(16, 64)), "student engine")
    assert not split.problem


def test_a_float32_engine_is_told_of_bfloat16(qwen: str) -> None:
    found = named(examine(local(qwen, *ON_GPUS, "rollout.dtype=float32"), Machine(24, 64)), "student engine")
    assert found.advice.startswith("set rollout.dtype=bfloat16, or rollout.gpus_per_engine=2")


def test_heads_have_to_be_divisible(qwen: str) -> None:
    found = named(examine(local(qwen, *ON_GPUS, "rollout.gpus_per_engine=8"), Machine(79, 64)), "student engine")
    assert "28 attention heads cannot be split over 8 GPUs" in found.problem


def test_teacher_judge_and_served_model_are_looked_at(qwen: str, tmp_path: Path) -> None:
    large = publish(tmp_path / "large", "Qwen2.5-VL-32B-Instruct")
    chat = f"{{backend: vllm, model: {large}, gpus: 2, max_model_len: 4096}}"
    found = examine(local(qwen, *ON_GPUS, f"teacher.chat={chat}", f"judge.chat={chat}"), Machine(31, 64))
    assert "teacher.chat.gpus=4" in named(found, "teacher").advice
    assert "judge.chat.gpus=4" in named(found, "judge").advice
    assert (found.training_gpus, found.sampling_gpus) == (1, 3)
    assert not found.fits
    served = f"judge={{chat: {{backend: openai, model: m}}, serve_model: {{path: {large}}}}}"
    assert named(examine(local(qwen, *ON_GPUS, served), Machine(79, 64)), "judge.serve_model").problem == ""


def test_a_cache_on_cpu_that_holds_no_sequence(qwen: str) -> None:
    settings = [qwen, "student.max_model_len=32768", "rollout.dtype=float32"]
    found = named(examine(local(*settings), Machine(None, 64)), "student engine")
    assert "rollout.kv_cache_gib" in found.advice


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["sft.use_gpu=true"], ["cluster.gpu_gib", "--gpu-gib", "nvidia-smi"]),
        (["lora.target_modules=nothing"], ["lora.target_modules", "'nothing'"]),
        (["student.model=/nowhere"], ["student.model", "/nowhere"]),
        (["teacher.chat={backend: vllm, model: /nowhere}"], ["teacher.chat.model", "/nowhere"]),
        (["sft.batch_size=3"], ["batch_size = 3"]),
    ],
)
def test_configs_that_cannot_be_examined(qwen: str, settings: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        examine(local(qwen, *settings), Machine(None, 64))
    assert all(word in str(raised.value) for word in words)


def test_exit_codes(qwen: str) -> None:
    arguments = ["doctor", str(LOCAL), qwen, ADAPTER, *ON_GPUS]
    fits = CliRunner().invoke(app, [*arguments, "--gpu-gib", "79"])
    assert (fits.exit_code, "all fits" in fits.output) == (0, True)
    small = CliRunner().invoke(app, [*arguments, "--gpu-gib", "16"])
    assert (small.exit_code, "NOT ALL FITS" in small.output) == (1, True)
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.slow
def test_neither_ray_nor_torch_is_imported(student: Path) -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from dream_ray.cli import app; "
        "CliRunner().invoke(app, sys.argv[1:]); "
        "sys.exit(str({'ray', 'torch', 'transformers', 'vllm'} & set(sys.modules) or ''))"
    )
    command = [sys.executable, "-c", script, "doctor", str(LOCAL), f"student.model={student}"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stderr.strip() == ""
