"""Tiny random models of each family that is supported, as folders that transformers saved: seconds to make, nothing to
download. Their language models have 2 layers of width 128 and speak bytes."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dream_ray.train.families import NEEDS

IN_EVERY_RUN = "idefics3"

BYTES = 256
SIDE, PATCH = 32, 16
"""Of LLaVA's pictures: 4 image tokens."""

CHATML = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}MARK{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}\
{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

VICUNA = """{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}\
{% if part['type'] == 'image' %}<image>
{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"""
"""As LLaVA-1.5's: no token of beginning, which its tokenizer adds, and none at an answer's end."""

MISTRAL = """{% for message in messages %}{% if message['role'] == 'user' %}[INST] {% for part in message['content'] %}\
{% if part['type'] == 'image' %}<image>
{% else %}{{ part['text'] }}{% endif %}{% endfor %} [/INST]{% else %}{% for part in message['content'] %} \
{{ part['text'] }}{% endfor %}</s>{% endif %}{% endfor %}"""
"""As LLaVA-NeXT's on Mistral, which ends its answers."""


def needs(family: str) -> None:
    """Skip where this run is not asked for a family or cannot have it."""
    asked = os.environ.get("DREAM_RAY_FAMILIES", IN_EVERY_RUN)
    if asked != "all" and family not in asked.split(","):
        pytest.skip(f"the family {family} runs with DREAM_RAY_FAMILIES=all or a list with it")
    for package in NEEDS.get(ARCHITECTURES[family], ()):
        if find_spec(package) is None:
            pytest.skip(f"{family} needs the package {package}")


def build(family: str, folder: Path) -> Path:
    """Save a random model of a family with its processor."""
    import torch
    from transformers import GenerationConfig

    processor, model_type, config = FAMILIES[family]()
    torch.manual_seed(0)
    model = model_type(config)
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if family.startswith("llava"):
        as_published(folder)
    return folder


def as_published(folder: Path) -> None:
    """Name the weights of the vision tower as LLaVA's published folders do."""
    from dream_ray.train.layout import rename_for_engines

    rename_for_engines(folder)


def learning_rate(family: str) -> float:
    """At which a family's model learns something in a few steps and still says various things. Tied embeddings take more."""
    return 1e-2 if family in ("idefics3", "smolvlm") else 3e-3


def byte_tokenizer(marks: list[str], template: str, bos: str | None, pad: str, eos: str, adds_bos: bool = False) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=eos)
    tokenizer.add_tokens(marks, special_tokens=True)
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = template
    return tokenizer


def text_settings(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    """A language model's; at the usual initializer_range of 0.02 a random one only repeats its last token."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    } | changes


def _idefics3() -> tuple[Any, type, Any]:
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3Processor,
        Idefics3VisionConfig,
        LlamaConfig,
    )
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer, template = _idefics_tokenizer()
    pictures = Idefics3ImageProcessorPil(**IDEFICS_PICTURES)
    processor = Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=template)
    text = LlamaConfig(**text_settings(tokenizer, tie_word_embeddings=True))
    config = Idefics3Config(
        text_config=text, vision_config=Idefics3VisionConfig(**IDEFICS_VISION), **_idefics_settings(tokenizer)
    )
    return processor, Idefics3ForConditionalGeneration, config


def _smolvlm() -> tuple[Any, type, Any]:
    from transformers import (
        LlamaConfig,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
        SmolVLMVisionConfig,
    )
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    tokenizer, template = _idefics_tokenizer()
    processor = SmolVLMProcessor(
        SmolVLMImageProcessorPil(**IDEFICS_PICTURES),
        tokenizer,
        SmolVLMVideoProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 64}),
        image_seq_len=4,
        chat_template=template,
    )
    text = LlamaConfig(**text_settings(tokenizer, tie_word_embeddings=True))
    config = SmolVLMConfig(
        text_config=text, vision_config=SmolVLMVisionConfig(**IDEFICS_VISION), **_idefics_settings(tokenizer)
    )
    return processor, SmolVLMForConditionalGeneration, config


IDEFICS_PICTURES = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 64}, "do_image_splitting": False}
IDEFICS_VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip


def _idefics_tokenizer() -> tuple[Any, str]:
    from dream_ray.train.local_student import CHAT_TEMPLATE, IMAGE_MARKS

    tokenizer = byte_tokenizer(list(IMAGE_MARKS), CHAT_TEMPLATE, "<|im_start|>", "<|endoftext|>", "<|im_end|>")
    return tokenizer, CHAT_TEMPLATE


def _idefics_settings(tokenizer: Any) -> dict[str, Any]:
    return {
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "scale_factor": 2,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }


def _clip() -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )


def _llava() -> tuple[Any, type, Any]:
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = byte_tokenizer(["<image>"], VICUNA, "<s>", "<pad>", "</s>", adds_bos=True)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=VICUNA,
        num_additional_image_tokens=1,
    )
    config = LlavaConfig(
        vision_config=_clip(),
        text_config=LlamaConfig(**text_settings(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    return processor, LlavaForConditionalGeneration, config


def _llava_next() -> tuple[Any, type, Any]:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor, MistralConfig
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    grid = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    tokenizer = byte_tokenizer(["<image>"], MISTRAL, "<s>", "<pad>", "</s>", adds_bos=True)
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=grid
    )
    processor = LlavaNextProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=MISTRAL,
        num_additional_image_tokens=1,
    )
    config = LlavaNextConfig(
        vision_config=_clip(),
        text_config=MistralConfig(**text_settings(tokenizer, sliding_window=None)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    return processor, LlavaNextForConditionalGeneration, config


QWEN_MARKS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def _qwen_tokenizer() -> Any:
    template = CHATML.replace("MARK", "<|vision_start|><|image_pad|><|vision_end|>")
    return byte_tokenizer(["<|im_start|>", *QWEN_MARKS], template, None, "<|endoftext|>", "<|im_end|>")


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return dict(zip(names, tokenizer.convert_tokens_to_ids(QWEN_MARKS), strict=True))


def _qwen2_5_vl() -> tuple[Any, type, Any]:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
    )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = _qwen_tokenizer()
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessorPil(size=size), tokenizer, Qwen2VLVideoProcessor(), chat_template=tokenizer.chat_template
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]}
    config = Qwen2_5_VLConfig(
        text_config=text_settings(tokenizer, rope_parameters=rope),
        vision_config={
            "depth": 2, "hidden_size": 128, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 128,
            "window_size": 56, "fullatt_block_indexes": [1],
        },
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    return processor, Qwen2_5_VLForConditionalGeneration, config


def _qwen3_vl() -> tuple[Any, type, Any]:
    from transformers import (
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = _qwen_tokenizer()
    size = {"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 16}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessorPil(size=size, patch_size=16),
        tokenizer,
        Qwen3VLVideoProcessor(),
        chat_template=tokenizer.chat_template,
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [12, 10, 10], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=text_settings(tokenizer, rope_parameters=rope, head_dim=64),
        vision_config={
            "depth": 2, "hidden_size": 128, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 128,
            "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        },
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    return processor, Qwen3VLForConditionalGeneration, config


FAMILIES: dict[str, Callable[[], tuple[Any, type, Any]]] = {
    "idefics3": _idefics3,
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
}

ARCHITECTURES = {
    "idefics3": "Idefics3ForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
}
