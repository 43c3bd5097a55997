"""Which students make the whole trip: trained here, saved, and loaded by transformers and vLLM with the same answers.

Contract: `check_student` finds before anything is trained what would fail after it: an architecture that vLLM or
transformers lacks, weights under names that vLLM refuses, LoRA targets that match nothing or that an engine would ignore, a
rank that it does not serve, a package that the processor needs. It raises ConfigError. It reads config.json and headers;
only for an architecture that is not in FAMILIES a second process imports vLLM and transformers to ask them.
"""

import json
import subprocess
import sys
from importlib.util import find_spec

from dream_ray import files
from dream_ray.config import ConfigError, LoraConfig, RolloutConfig, StudentConfig
from dream_ray.doctor.shape import ModelShape, read_shape, seeing, targets, weight_names
from dream_ray.rollout.sampler import LORA_RANKS
from dream_ray.train.layout import refused_name

FAMILIES = {
    "LlavaForConditionalGeneration": "LLaVA-1.5",
    "LlavaNextForConditionalGeneration": "LLaVA-NeXT (1.6)",
    "Idefics3ForConditionalGeneration": "Idefics3",
    "SmolVLMForConditionalGeneration": "SmolVLM",
    "Qwen2_5_VLForConditionalGeneration": "Qwen2.5-VL",
    "Qwen3VLForConditionalGeneration": "Qwen3-VL",
}
"""Architectures whose trip tests/train/test_round_trip.py makes with a small random model, and what they are called."""

NEEDS = {
    "LlavaForConditionalGeneration": ("torchvision",),
    "LlavaNextForConditionalGeneration": ("torchvision",),
    "SmolVLMForConditionalGeneration": ("torchvision", "num2words"),
    "Qwen2_5_VLForConditionalGeneration": ("torchvision",),
    "Qwen3VLForConditionalGeneration": ("torchvision",),
}
"""Packages without which vLLM cannot load an architecture (LLaVA's, which imports Pixtral's processor) or transformers not its
processor (those that read videos as well)."""

CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes that vLLM 0.32 computes on a CPU (CPUAttentionBackend.get_supported_head_sizes)."""

ASK = """
import json, sys
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as trainable
from vllm.model_executor.models.registry import _MULTIMODAL_MODELS as served
print(json.dumps({"trainable": sys.argv[1] in trainable.values(), "served": sys.argv[1] in served}))
"""
"""Asked of transformers and vLLM about an architecture, in a process of its own: importing both takes many seconds."""


def check_student(student: StudentConfig, lora: LoraConfig | None, rollout: RolloutConfig) -> None:
    """Raise ConfigError where this student, trained so, could not be sampled from."""
    config = json.loads(files.read_bytes(files.join(student.model, "config.json")))
    shape = read_shape(student.model, "student.model")
    architecture = config["architectures"][0]
    if architecture not in FAMILIES:
        _check_unknown(student, architecture)
    if missing := [package for package in NEEDS.get(architecture, ()) if find_spec(package) is None]:
        raise ConfigError(
            f"student.model = {student.model!r} is a {FAMILIES[architecture]}, which transformers and vLLM load only with "
            f"{' and '.join(missing)}, not installed here. Install it on every machine of the cluster, torchvision in the "
            "build that belongs to your torch (requirements/gpu.txt has it), or take another student."
        )
    if refused := refused_name(config, weight_names(student.model, "student.model")):
        raise ConfigError(
            f"student.model = {student.model!r} holds a weight named {refused!r}, as transformers 5 saves a LLaVA, and vLLM "
            "would refuse to load it (it wants vision_tower.vision_model.…), after training as before. `dream-ray export "
            "MODEL NEW_FOLDER` writes a copy under names that both load; name that one."
        )
    if lora is not None:
        _check_lora(student, lora, rollout, shape)
    if rollout.gpus_per_engine == 0 and shape.head_dim not in CPU_HEAD_DIMS:
        raise ConfigError(
            f"student.model = {student.model!r} has attention heads of {shape.head_dim} features, and vLLM on a CPU computes "
            f"only {', '.join(map(str, CPU_HEAD_DIMS))}. Sample on a GPU (rollout.gpus_per_engine), or take another student."
        )


def _check_lora(student: StudentConfig, lora: LoraConfig, rollout: RolloutConfig, shape: ModelShape) -> None:
    chosen = targets(shape, lora.target_modules)
    if not chosen:
        raise ConfigError(
            f"lora.target_modules = {lora.target_modules!r} matches no weight matrix of {student.model}, so there would be "
            f"nothing to train. Its matrices are named like {next(iter(shape.matrices), '(none)')}."
        )
    if lora.rank > LORA_RANKS[-1]:
        raise ConfigError(
            f"lora.rank = {lora.rank}, but vLLM serves adapters up to rank {LORA_RANKS[-1]}. Set lora.rank lower."
        )
    if rollout.merges_adapters:
        return
    if blind := next((name for name in chosen if seeing(name)), None):
        raise ConfigError(
            f"lora.target_modules = {lora.target_modules!r} matches {blind} in the vision tower, where vLLM ignores adapters "
            "that come with a request: it would sample from another model than the one that was trained. Leave the vision "
            "tower out, or set rollout.adapters=merge."
        )


def _check_unknown(student: StudentConfig, architecture: str) -> None:
    """Ask vLLM and transformers about an architecture that dream_ray has not been tried with."""
    asked = subprocess.run([sys.executable, "-c", ASK, architecture], capture_output=True, text=True)
    if asked.returncode:
        raise ConfigError(
            f"student.model = {student.model!r} is a {architecture}, which dream_ray has not been tried with, and asking vLLM "
            f"about it failed: {asked.stderr.strip().splitlines()[-1:]}. Checked are {', '.join(FAMILIES.values())}."
        )
    known = json.loads(asked.stdout.splitlines()[-1])
    lacking = [name for name, key in (("transformers", "trainable"), ("vLLM", "served")) if not known[key]]
    if lacking:
        raise ConfigError(
            f"student.model = {student.model!r} is a {architecture}, which {' and '.join(lacking)} cannot load as a model of "
            f"images and text, so it could not be both trained and sampled. Checked are {', '.join(FAMILIES.values())}; see "
            "docs/models.md."
        )
