"""What would not make the trip is refused before training, by reading small files."""

import json
from pathlib import Path
from typing import Any

import pytest

from dream_ray.config import ConfigError, LoraConfig, RolloutConfig, StudentConfig
from dream_ray.train import families as checked
from dream_ray.train import layout
from dream_ray.train.families import check_student
from dream_ray.train.layout import refused_by_engines, refused_name, rename_for_engines
from tests import families

LORA, ROLLOUT = LoraConfig(), RolloutConfig(adapters="request")


@pytest.fixture(autouse=True)
def all_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all were installed that some family needs."""
    monkeypatch.setattr(checked, "find_spec", lambda name: object())


def write_model(folder: Path, architecture: str, names: dict[str, tuple[int, int]], **config: Any) -> StudentConfig:
    """A folder with a config and empty weights of some shapes."""
    import numpy
    from safetensors.numpy import save_file

    folder.mkdir()
    text = {"num_attention_heads": 2, "head_dim": 64, "hidden_size": 128}
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], "text_config": text} | config))
    save_file({name: numpy.zeros(size, "float16") for name, size in names.items()}, folder / "model.safetensors")
    return StudentConfig(model=str(folder))


TEXT = {f"model.language_model.layers.0.{name}.weight": (128, 128) for name in (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
)} | {"model.language_model.embed_tokens.weight": (300, 128)}  # fmt: skip
TOWER = {"vision_config": {"model_type": "clip_vision_model"}}
LLAVA = "LlavaForConditionalGeneration"


def test_a_model_that_makes_the_trip_passes(tmp_path: Path) -> None:
    published = TEXT | {"model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight": (32, 32)}
    check_student(write_model(tmp_path / "a", LLAVA, published, **TOWER), LORA, ROLLOUT)


@pytest.mark.parametrize("prefix", ["model.vision_tower.", "vision_tower."])
def test_names_that_vllm_refuses_are_refused(tmp_path: Path, prefix: str) -> None:
    student = write_model(tmp_path / "a", LLAVA, TEXT | {f"{prefix}embeddings.class_embedding": (1, 32)}, **TOWER)
    with pytest.raises(ConfigError, match=rf"{prefix}embeddings.class_embedding.*dream-ray export"):
        check_student(student, LORA, ROLLOUT)


def test_other_architectures_keep_their_names() -> None:
    names = ["vision_tower.embeddings.class_embedding"]
    assert refused_name({"architectures": ["Gemma3ForConditionalGeneration"], **TOWER}, names) is None
    assert refused_name({"architectures": [LLAVA], "vision_config": {"model_type": "pixtral"}}, names) is None
    assert refused_name({"architectures": [LLAVA], **TOWER}, names) == names[0]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = write_model(tmp_path / "a", "Qwen2_5_VLForConditionalGeneration", TEXT)
    monkeypatch.setattr(checked, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="load only with torchvision, not installed here"):
        check_student(student, LORA, ROLLOUT)
    monkeypatch.setattr(checked, "find_spec", lambda name: object())
    check_student(student, LORA, ROLLOUT)
    monkeypatch.setattr(checked, "find_spec", lambda name: None)
    check_student(write_model(tmp_path / "b", "Idefics3ForConditionalGeneration", TEXT), LORA, ROLLOUT)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"target_modules": r".*\.nowhere"}, "matches no weight matrix"),
        ({"target_modules": r".*\.q_proj"}, "in the vision tower, where vLLM ignores adapters"),
        ({"rank": 1024}, "up to rank 512"),
    ],
)
def test_adapters_that_an_engine_would_not_apply_are_refused(
    tmp_path: Path, lora: dict[str, Any], message: str
) -> None:
    tower = {"model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight": (32, 32)}
    student = write_model(tmp_path / "a", LLAVA, TEXT | tower, **TOWER)
    with pytest.raises(ConfigError, match=message):
        check_student(student, LoraConfig(**lora), ROLLOUT)


def test_a_merged_adapter_may_see(tmp_path: Path) -> None:
    tower = {"model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight": (32, 32)}
    student = write_model(tmp_path / "a", LLAVA, TEXT | tower, **TOWER)
    check_student(student, LoraConfig(target_modules=r".*\.q_proj"), RolloutConfig(adapters="merge"))


def test_heads_that_a_cpu_engine_cannot_compute_are_refused(tmp_path: Path) -> None:
    text = {"num_attention_heads": 8, "head_dim": 16, "hidden_size": 128}
    student = write_model(tmp_path / "a", LLAVA, TEXT, text_config=text, **TOWER)
    with pytest.raises(ConfigError, match="heads of 16 features"):
        check_student(student, LORA, ROLLOUT)
    check_student(student, LORA, RolloutConfig(gpus_per_engine=1))


@pytest.mark.slow
def test_an_unknown_architecture_is_asked_about(tmp_path: Path) -> None:
    """Of vLLM and transformers as they are installed: one that both know, one that neither does."""
    check_student(write_model(tmp_path / "a", "Gemma3ForConditionalGeneration", TEXT), LORA, ROLLOUT)
    with pytest.raises(ConfigError, match="is a LlamaForCausalLM, which transformers and vLLM cannot load"):
        check_student(write_model(tmp_path / "b", "LlamaForCausalLM", TEXT), LORA, ROLLOUT)


@pytest.mark.slow
def test_a_renamed_llava_is_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers 5 saves it vLLM refuses it; renamed, transformers loads the same weights."""
    import torch
    from transformers import AutoModelForImageTextToText

    monkeypatch.setattr(families, "as_published", lambda folder: None)
    folder = families.build("llava", tmp_path / "model")
    assert refused_by_engines(folder)
    before = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    rename_for_engines(folder)
    assert not refused_by_engines(folder)
    after = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    monkeypatch.setattr(layout, "_engine_name", lambda name: pytest.fail("renamed twice"))
    rename_for_engines(folder)
