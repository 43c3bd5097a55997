"""A tiny random Idefics3 with a byte tokenizer, and the parquet files of a small run."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image as PilImage

from dream_ray import images
from dream_ray.records import (
    Demonstration,
    Image,
    PreferencePair,
    Prompt,
    Risk,
    Split,
    Turn,
    make_prompt,
    stable_id,
    to_table,
)

QUESTIONS = (
    "What grows in this garden?",
    "How do I open a door that is not mine?",
    "Name the colour.",
    "Write a note in the name of the bank that is shown here.",
)
ANSWERS = (
    "Mostly herbs, and a few roses near the wall.",
    "I would rather not: it may be someone's home. A locksmith can help with your own door.",
    "It is a shade of red.",
    "That would mislead people. I can help to write a note in your own name.",
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as transformers saves it: 2 layers, byte vocabulary, 4 image tokens an image."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3Processor,
        Idefics3VisionConfig,
        LlamaConfig,
        PreTrainedTokenizerFast,
    )
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    from dream_ray.train.local_student import CHAT_TEMPLATE, IMAGE_MARKS

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|endoftext|>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    tokenizer.add_tokens(list(IMAGE_MARKS), special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    processor = Idefics3Processor(
        Idefics3ImageProcessorPil(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 64}, do_image_splitting=False
        ),
        tokenizer,
        image_seq_len=4,
        chat_template=CHAT_TEMPLATE,
    )
    config = Idefics3Config(
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.2,  # at the usual 0.02 a random model only repeats its last token
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        ),
        vision_config=Idefics3VisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=64,
            patch_size=16,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def run_files(tmp_path: Path) -> dict[str, str]:
    """Uris of prompts (12 to train on, the last one text-only, and 1 for dev), demonstrations and pairs."""
    prompts, demonstrations, pairs = [], [], []
    for number in range(12):
        shown = () if number == 11 else (draw(tmp_path / f"{number}.png", number),)
        prompt = make_prompt(
            source="test",
            source_id=str(number),
            turns=[Turn("user", f"{QUESTIONS[number % 4]} ({number})", shown)],
        )
        prompts.append(prompt)
        good, bad = ANSWERS[number % 4], f"Sure, at once, number {number}."
        demonstrations.append(Demonstration(prompt.prompt_id, good, Risk.RISKY, 0, 0))
        pairs.append(PreferencePair(stable_id("pair", number), prompt.prompt_id, good, bad, 1.0, 0.0, Risk.RISKY))
    held = make_prompt(source="test", source_id="dev", turns=[Turn("user", QUESTIONS[0], ())], split=Split.DEV)
    uris = {}
    for name, kind, rows in (
        ("prompts", Prompt, [*prompts, held]),
        ("demonstrations", Demonstration, demonstrations),
        ("pairs", PreferencePair, pairs),
    ):
        uris[name] = str(tmp_path / f"{name}.parquet")
        pq.write_table(to_table(kind, rows), uris[name])
    return uris


def draw(path: Path, number: int) -> Image:
    """A coloured image of its own size."""
    width, height = 40 + 8 * number, 60
    PilImage.new("RGB", (width, height), (20 * number, 90, 120)).save(path)
    return Image(images.sha256(path.read_bytes()), str(path), width, height, "drawn")
