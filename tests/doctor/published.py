"""Folders with the config.json and the safetensors header of published models, without their weights."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Language:
    """A Llama- or Qwen2-like language model, as its checkpoint names it."""

    prefix: str
    head: str | None
    layers: int
    hidden: int
    intermediate: int
    query: int
    key_value: int
    vocabulary: int
    biased: bool = False

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes."""
        wide, narrow = self.hidden, self.intermediate
        found: dict[str, tuple[int, ...]] = {
            f"{self.prefix}embed_tokens.weight": (self.vocabulary, wide),
            f"{self.prefix}norm.weight": (wide,),
        }
        if self.head:
            found[self.head] = (self.vocabulary, wide)
        for number in range(self.layers):
            layer = f"{self.prefix}layers.{number}."
            for name, out in (("q", self.query), ("k", self.key_value), ("v", self.key_value)):
                found[f"{layer}self_attn.{name}_proj.weight"] = (out, wide)
                if self.biased:
                    found[f"{layer}self_attn.{name}_proj.bias"] = (out,)
            found |= {
                f"{layer}self_attn.o_proj.weight": (wide, self.query),
                f"{layer}mlp.gate_proj.weight": (narrow, wide),
                f"{layer}mlp.up_proj.weight": (narrow, wide),
                f"{layer}mlp.down_proj.weight": (wide, narrow),
                f"{layer}input_layernorm.weight": (wide,),
                f"{layer}post_attention_layernorm.weight": (wide,),
            }
        return found


@dataclass(frozen=True)
class Published:
    """A model: its language model, and the parameters of the rest in two lumps."""

    language: Language
    vision: tuple[str, int]
    connector: tuple[str, int]
    config: Mapping[str, Any]


_QWEN_VISION = {"hidden_size": 1280, "intermediate_size": 3420, "spatial_merge_size": 2, "depth": 32}


def _qwen(language: Language, vision: int, heads: int) -> Published:
    config = {"hidden_size": language.hidden, "num_attention_heads": heads, "vision_config": _QWEN_VISION}
    return Published(language, ("visual.blocks.0.attn.qkv.weight", vision), ("visual.merger.mlp.2.weight", 0), config)


MODELS = {
    # As llava-hf publishes it: the text_config leaves all widths to LlamaConfig's defaults.
    "llava-1.5-7b-hf": Published(
        Language("language_model.model.", "language_model.lm_head.weight", 32, 4096, 11008, 4096, 4096, 32064),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", 303_507_456),
        ("multi_modal_projector.linear_1.weight", 20_979_712),
        {
            "text_config": {"model_type": "llama", "vocab_size": 32064},
            "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "image_size": 336, "patch_size": 14},
        },
    ),
    "Qwen2.5-VL-3B-Instruct": _qwen(
        Language("model.", None, 36, 2048, 11008, 2048, 256, 151936, biased=True), 668_684_288, 16
    ),
    "Qwen2.5-VL-7B-Instruct": _qwen(
        Language("model.", "lm_head.weight", 28, 3584, 18944, 3584, 512, 152064, biased=True), 676_550_144, 28
    ),
    "Qwen2.5-VL-32B-Instruct": _qwen(
        Language("model.", "lm_head.weight", 64, 5120, 27648, 5120, 1024, 152064, biased=True), 688_871_424, 40
    ),
    "Qwen2.5-VL-72B-Instruct": _qwen(
        Language("model.", "lm_head.weight", 80, 8192, 29568, 8192, 1024, 152064, biased=True), 705_000_000, 64
    ),
}


def publish(folder: Path, name: str) -> Path:
    """Write a model's small files below `folder`; the weights file ends after its header."""
    model = MODELS[name]
    target = folder / name
    target.mkdir(parents=True)
    shapes = model.language.weights()
    for weight, count in (model.vision, model.connector):
        shapes[weight] = (count, 1)
    write_header(target / "model.safetensors", shapes)
    (target / "config.json").write_text(json.dumps({"architectures": ["A"], **model.config}))
    for empty in ("tokenizer.json", "preprocessor_config.json", "chat_template.json"):
        (target / empty).write_text("{}")
    return target


def write_header(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of bfloat16 tensors without its data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def a_student(folder: Path) -> Path:
    """A folder with all that is looked at before a student is loaded: names, and two small files."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        "model.text_model.embed_tokens.weight": (8, 64),
        "model.text_model.layers.20.self_attn.q_proj.weight": (64, 64),
    }
    write_header(folder / "model.safetensors", weights)
    language = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = {"architectures": ["Idefics3ForConditionalGeneration"], "text_config": language}
    (folder / "config.json").write_text(json.dumps(config))
    for empty in ("tokenizer.json", "preprocessor_config.json", "chat_template.jinja"):
        (folder / empty).touch()
    return folder
