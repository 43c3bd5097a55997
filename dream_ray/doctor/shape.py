"""The shape of a model, from its folder's config.json and the headers of its safetensors files.

Contract: `read_shape` reads some kilobytes, no weights, on any pyarrow filesystem, and raises ConfigError where they do not
tell the shape. Names of weights are turned into the module names of transformers 5, which LoRA targets are matched with.
"""

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dream_ray import files
from dream_ray.config import ConfigError

RENAMINGS = (
    (r"^language_model\.lm_head", "lm_head"),
    (r"^language_model\.model", "model.language_model"),
    (r"^(vision_tower|multi_modal_projector|visual)\.", r"model.\1."),
    (r"^model\.layers\.", "model.language_model.layers."),
    (r"^model\.embed_tokens\.", "model.language_model.embed_tokens."),
)
"""How older checkpoints (LLaVA, Qwen2.5-VL as published) name what transformers 5 calls otherwise; the rules of its
conversion_mapping.py for these families."""

VISION = re.compile(r"(^|\.)(vision_tower|vision_model|visual)\.")
"""Modules that see."""

LAYER = re.compile(r"\.layers\.(\d+)\.")

HEAD_DIM = 128
"""Of a language model whose config.json leaves its heads to the architecture's default, as LLaVA-1.5's does."""

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format."""


@dataclass(frozen=True)
class ModelShape:
    """What memory depends on. Widths are those of the language model, in elements, unless they say otherwise.

    `matrices` maps each two-dimensional weight's module name to (out, in) features. `query` and `key_value` are the
    output widths of the projections of those names. `patches_per_token` is how many patches of the vision tower become one
    image token. `stored_bytes` are those of the files; `quantised` says that they are not to be counted by parameters.
    """

    name: str
    parameters: int
    stored_bytes: int
    quantised: bool
    matrices: Mapping[str, tuple[int, int]]
    vision_parameters: int
    layers: int
    hidden: int
    intermediate: int
    query: int
    key_value: int
    head_dim: int
    vocabulary: int
    vision_hidden: int
    vision_intermediate: int
    patches_per_token: int

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.query // self.head_dim


def read_shape(uri: str, setting: str) -> ModelShape:
    """The shape of the model in a folder, which `setting` names. Raises ConfigError."""
    config = _config(uri, setting)
    weights = {_renamed(name): entry for name, entry in _entries(uri, setting)}
    shapes = {name: tuple(entry["shape"]) for name, entry in weights.items()}
    matrices = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if len(shape) == 2}
    text = config.get("text_config") or config
    vision = config.get("vision_config") or {}
    language = {name: shape for name, shape in matrices.items() if not seeing(name)}
    quantised = "quantization_config" in config

    def width(suffix: str, axis: int, *keys: str) -> int:
        # Packed weights have other shapes than the matrices that they stand for.
        found = next((shape[axis] for name, shape in language.items() if name.endswith(suffix)), None)
        found = (
            found if found is not None and not quantised else next((text[key] for key in keys if key in text), found)
        )
        if found is None:
            raise ConfigError(
                f"{setting} = {uri!r}: neither config.json ({', '.join(keys)}) nor a weight named *{suffix} tells how wide "
                "the model is, so its memory cannot be estimated. Name the folder of a vision-language model that "
                "transformers saved."
            )
        return int(found)

    heads = text.get("num_attention_heads")
    hidden = width("embed_tokens", 1, "hidden_size")
    head_dim = int(text.get("head_dim") or (hidden // heads if heads else HEAD_DIM))
    if quantised and heads:
        query, key_value = heads * head_dim, int(text.get("num_key_value_heads") or heads) * head_dim
    else:
        query, key_value = width("q_proj", 0, "hidden_size"), width("k_proj", 0, "hidden_size")
    layers = {int(found[1]) for name in shapes if not VISION.search(name) and (found := LAYER.search(name))}
    return ModelShape(
        name=uri.rstrip("/").rsplit("/", 1)[-1],
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        stored_bytes=sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in weights.values()),
        quantised=quantised,
        matrices=matrices,
        vision_parameters=sum(math.prod(shape) for name, shape in shapes.items() if VISION.search(name)),
        layers=len(layers),
        hidden=hidden,
        intermediate=width("gate_proj", 0, "intermediate_size"),
        query=query,
        key_value=key_value,
        head_dim=head_dim,
        vocabulary=width("embed_tokens", 0, "vocab_size"),
        # Qwen2-VL calls the width embed_dim, and hidden_size what its merger gives the language model.
        vision_hidden=int(vision.get("embed_dim") or vision.get("hidden_size") or hidden),
        vision_intermediate=int(vision.get("intermediate_size") or 4 * (vision.get("hidden_size") or hidden)),
        patches_per_token=int(vision.get("spatial_merge_size") or config.get("scale_factor") or 1) ** 2,
    )


def adapter_parameters(shape: ModelShape, rank: int, target_modules: str) -> int:
    """Parameters of a LoRA adapter: rank x (in + out) for each matrix W that it stands beside (Hu et al. 2021, section
    4.1: W + BA with A of rank x in and B of out x rank)."""
    return sum(rank * (out + into) for out, into in targets(shape, target_modules).values())


def targets(shape: ModelShape, target_modules: str) -> dict[str, tuple[int, int]]:
    """The matrices that a LoRA regex chooses, by PEFT's rule: the whole module name has to match."""
    chosen = re.compile(target_modules)
    return {name: size for name, size in shape.matrices.items() if chosen.fullmatch(name)}


def weight_names(uri: str, setting: str) -> list[str]:
    """The names of all weights as the files have them. Raises ConfigError."""
    return [name for name, _ in _entries(uri, setting)]


def seeing(module: str) -> bool:
    """True for a module of the part that sees."""
    return VISION.search(f"{module}.") is not None


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMINGS:
        name, count = re.subn(pattern, replacement, name)
        if count:
            return name
    return name


def _config(uri: str, setting: str) -> dict[str, Any]:
    """The folder's config.json."""
    try:
        return dict(json.loads(files.read_bytes(files.join(uri, "config.json"))))
    except FileNotFoundError:
        raise ConfigError(
            f"{setting} = {uri!r} holds no config.json, so there is no model to estimate. Download the model into that "
            "folder (its weights are not loaded here, only their headers read), or name the folder that holds it."
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"{setting} = {uri!r}: its config.json is not JSON ({error}). Download the model folder again."
        ) from None


def _entries(uri: str, setting: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of all weights with what their headers say. Raises ConfigError."""
    index = files.join(uri, "model.safetensors.index.json")
    if files.exists(index):
        # A published folder may hold the same weights once more in another layout.
        names = sorted(set(json.loads(files.read_bytes(index))["weight_map"].values()))
    else:
        names = [path.rsplit("/", 1)[-1] for path in files.list_files(uri, ".safetensors")]
    if not names:
        raise ConfigError(
            f"{setting} = {uri!r} holds no *.safetensors, whose headers tell the model's size. Download the weights in "
            "that format, or save the model again with save_pretrained."
        )
    for name in names:
        yield from _header(files.join(uri, name), setting).items()


def _header(uri: str, setting: str) -> dict[str, dict[str, Any]]:
    """A file's header: 8 bytes of length, little endian, then JSON (https://github.com/huggingface/safetensors#format)."""
    filesystem, path = files.resolve(uri)
    try:
        with filesystem.open_input_file(path) as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(stream.read(length))
    except (OSError, ValueError, struct.error, pa.ArrowInvalid) as error:
        raise ConfigError(
            f"{setting}: {uri} cannot be read as safetensors ({error}). The download may be incomplete, or the file a "
            "pointer of Git LFS: download the weights again."
        ) from None
    header.pop("__metadata__", None)
    return dict(header)
