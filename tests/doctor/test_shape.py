"""A model's shape from its small files, against the parameter counts of the published models."""

import json
from pathlib import Path

import pytest

from dream_ray.config import ConfigError, LoraConfig
from dream_ray.doctor.shape import adapter_parameters, read_shape, targets
from tests.doctor.published import publish, write_header

TARGETS = LoraConfig().target_modules


@pytest.mark.slow
def test_the_local_students_parameters_are_those_that_torch_counts(student: Path) -> None:
    from safetensors import safe_open

    with safe_open(student / "model.safetensors", "np") as weights:
        counted = 0
        for name in weights.keys():  # noqa: SIM118
            size = 1
            for width in weights.get_slice(name).get_shape():
                size *= width
            counted += size
    shape = read_shape(str(student), "student.model")
    assert shape.parameters == counted == 138_263_424
    assert (shape.layers, shape.hidden, shape.heads, shape.key_value) == (30, 576, 9, 3 * 64)
    assert shape.patches_per_token == 16
    # rank x (in + out), by hand: q, o 1152; k, v 768; gate, up, down 2112 each; 30 layers.
    assert adapter_parameters(shape, 16, TARGETS) == 16 * 30 * (2 * 1152 + 2 * 768 + 3 * 2112)


@pytest.mark.parametrize(
    ("name", "parameters", "adapter", "per_token"),
    [
        # 39,976,960 is what PEFT prints for rank 16 on all projections of a 7B Llama.
        ("llava-1.5-7b-hf", 7_063_427_072, 39_976_960, 1),
        ("Qwen2.5-VL-3B-Instruct", 3_754_622_976, 16 * 36 * (2 * 4096 + 2 * 2304 + 3 * 13056), 4),
        ("Qwen2.5-VL-7B-Instruct", 8_292_166_656, 16 * 28 * (2 * 7168 + 2 * 4096 + 3 * 22528), 4),
    ],
)
def test_published_models(tmp_path: Path, name: str, parameters: int, adapter: int, per_token: int) -> None:
    shape = read_shape(str(publish(tmp_path, name)), "student.model")
    assert shape.parameters == parameters
    assert adapter_parameters(shape, 16, TARGETS) == adapter
    assert all(module.startswith("model.language_model.layers.") for module in targets(shape, TARGETS))
    assert shape.patches_per_token == per_token
    assert shape.head_dim == 128


def test_of_a_folder_with_two_layouts_the_indexed_one_counts(tmp_path: Path) -> None:
    folder = publish(tmp_path, "Qwen2.5-VL-3B-Instruct")
    write_header(folder / "consolidated.safetensors", {"another.weight": (10, 10)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert read_shape(str(folder), "student.model").parameters == 3_754_622_976


def test_packed_weights_take_their_widths_from_the_config(tmp_path: Path) -> None:
    text = {
        "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text, "quantization_config": {"bits": 4}}))
    packed = {"model.layers.0.self_attn.q_proj.qweight": (64, 8), "model.embed_tokens.weight": (50, 64)}
    write_header(tmp_path / "model.safetensors", packed)
    shape = read_shape(str(tmp_path), "judge.chat.model")
    assert (shape.hidden, shape.intermediate, shape.query, shape.key_value, shape.vocabulary) == (64, 96, 64, 32, 50)
    assert shape.quantised
    assert shape.stored_bytes == 2 * (64 * 8 + 50 * 64)


@pytest.mark.parametrize(
    ("config", "weights", "words"),
    [
        (None, None, ["student.model", "config.json", "Download"]),
        ("{", None, ["not JSON"]),
        ("{}", None, ["*.safetensors"]),
        ("{}", b"short", ["cannot be read as safetensors"]),
        ("{}", b"version https://git-lfs.github.com/spec/v1", ["Git LFS"]),
        ("{}", b"\x02\0\0\0\0\0\0\0{}", ["embed_tokens", "hidden_size"]),
    ],
)
def test_folders_that_tell_nothing(tmp_path: Path, config: str | None, weights: bytes | None, words: list[str]) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    if weights is not None:
        (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ConfigError) as raised:
        read_shape(str(tmp_path), "student.model")
    assert all(word in str(raised.value) for word in words)
