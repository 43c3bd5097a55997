"""Names of weights in a model folder that transformers and vLLM both load.

Contract: transformers 5 loads LLaVA folders with and without the level `vision_model` in the names of their vision tower, as
published ones have it, and saves new ones without; vLLM 0.32 loads them with it alone. `refused_name` finds such names,
`rename_for_engines` puts them right, a file at a time. Every folder that dream_ray writes goes through it.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dream_ray.doctor.shape import weight_names

LLAVA = {"LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration"}
"""Architectures of vLLM that keep a CLIP or SigLIP tower one level deeper."""

TOWERS = {"clip_vision_model", "siglip_vision_model"}

UNREAD = re.compile(r"^((?:model\.)?vision_tower\.)(?!vision_model\.)")
"""A name of theirs without that level."""


def refused_name(config: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first name that vLLM would refuse in a model with this config.json, None where there is none."""
    tower = config.get("vision_config") or {}
    if not LLAVA.intersection(config.get("architectures") or ()) or tower.get("model_type") not in TOWERS:
        return None
    return next((name for name in names if UNREAD.match(name)), None)


def refused_by_engines(folder: Path) -> bool:
    """True where a local folder has such a name."""
    config = json.loads((folder / "config.json").read_text())
    return refused_name(config, weight_names(str(folder), "model")) is not None


def rename_for_engines(folder: Path) -> None:
    """Give a local folder's weights the names that vLLM loads, where they have others. Holds one file in memory."""
    from safetensors.torch import load_file, save_file

    if not refused_by_engines(folder):
        return
    for file in sorted(folder.glob("*.safetensors")):
        save_file({_engine_name(name): weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text())
        content["weight_map"] = {_engine_name(name): file for name, file in content["weight_map"].items()}
        index.write_text(json.dumps(content, indent=2))


def _engine_name(name: str) -> str:
    return UNREAD.sub(r"\1vision_model.", name)
