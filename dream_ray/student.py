"""How the student reads a dialogue: text, tokens and pixels, the same when it is measured, sampled and trained.

Contract: `StudentReader` holds a model folder's processor and is the only place that renders a dialogue for the student. Its
texts hold every special token, so whoever tokenises them adds none: an engine, TRL and the count at ingest get the same ids.
`Unreadable` is raised, with a reason for the errors table, for a dialogue that the model could not be given whole.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dream_ray import images
from dream_ray.chat.encode import fitting
from dream_ray.config import ConfigError, ImageConfig, StudentConfig
from dream_ray.dialogue import rendered, to_messages
from dream_ray.records import Turn
from dream_ray.stored_images import read_images

if TYPE_CHECKING:
    from PIL.Image import Image


class Unreadable(ValueError):
    """A dialogue that the student cannot be given; `reason` is a short word for counting."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class StudentReader:
    """The processor of a model folder and what dream_ray holds it to."""

    def __init__(self, folder: Path, student: StudentConfig, limits: ImageConfig):
        """Load the processor in the local `folder`. Raises ConfigError where it breaks the conventions that all stages
        lean on: one mark an image, and an answer that only adds to its prompt."""
        from transformers import AutoProcessor

        self.processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=student.trust_remote_code)
        self._limits, self._max_pixels = limits, student.max_pixels
        self._stops = _stops(folder, self.processor.tokenizer)
        self._size_tokens: dict[tuple[int, int], int] = {}
        """What the mark of an image of this size becomes, for sizes that came before."""
        _check_conventions(self, str(folder))

    @property
    def mark(self) -> str:
        """What stands for an image in a rendered dialogue."""
        return str(self.processor.image_token)

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The dialogue as the text that the model continues. Raises Unreadable "image_mark_in_text" where its words hold the
        mark of an image: the processor would look for a picture there."""
        text, bare = rendered(self.processor, to_messages(turns))
        count = sum(len(turn.images) for turn in turns)
        if text.count(self.mark) != count:
            raise Unreadable(
                "image_mark_in_text", f"{self.mark} occurs {text.count(self.mark)} times for {count} images"
            )
        return _opening(self.processor.tokenizer) + text if bare else text

    def answer(self, turns: Sequence[Turn], text: str) -> str:
        """What follows the prompt where the model answers `text`, up to and with a token that ends its turn.

        Some templates (LLaVA-1.5's) end no answer; a model trained on those would never stop. Raises ConfigError where the
        template renders the prompt otherwise once it is answered.
        """
        prompt = self.prompt(turns)
        messages = to_messages([*turns, Turn("assistant", text, ())])
        whole: str = self.processor.apply_chat_template(messages, add_generation_prompt=False, tokenize=False)
        whole = whole if whole.startswith(prompt) else _opening(self.processor.tokenizer) + whole
        if not whole.startswith(prompt):
            raise ConfigError(
                "The student's chat template renders a prompt otherwise once an answer follows it, so a trained answer would "
                "not follow what is sampled from. Take the model's instruction-tuned template, without options that cut or "
                "add thinking."
            )
        rest = whole[len(prompt) :]
        after = rest.rpartition(text.strip())[2] if text.strip() else rest
        if any(stop in after for stop in self._stops):
            return rest
        return f"{rest.rstrip()}{self.processor.tokenizer.eos_token}"

    def pixels(self, turns: Sequence[Turn]) -> "list[Image]":
        """The pictures of a dialogue within the student's pixel cap. Raises BadImage."""
        contents = read_images([image for turn in turns for image in turn.images], self._limits)
        return [self._capped(images.decode(content, self._limits)) for content in contents]

    def ids(self, text: str, pictures: "Sequence[Image]") -> tuple[int, ...]:
        """The tokens of a prompt with its images, image tokens included."""
        shown = [list(pictures)] if pictures else None
        found = self.processor(text=[text], images=shown, add_special_tokens=False, return_tensors="pt")
        return tuple(found["input_ids"][0].tolist())

    def length(self, turns: Sequence[Turn]) -> int:
        """Tokens of a prompt, image tokens included, from its pictures' sizes alone. Raises Unreadable."""
        text = self.prompt(turns)
        words = len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])
        sizes = [(image.width, image.height) for turn in turns for image in turn.images]
        return words + sum(self._image_tokens(size) - 1 for size in sizes)

    def _image_tokens(self, size: tuple[int, int]) -> int:
        """How many tokens an image of this size becomes, those around it that the processor adds included."""
        from PIL import Image

        if size not in self._size_tokens:
            try:
                # What the picture shows does not matter.
                self._size_tokens[size] = len(self.ids(self.mark, [self._capped(Image.new("RGB", size))]))
            except ValueError as error:  # as Qwen's for a strip of 1 x 300 pixels
                raise Unreadable("image_unusable", f"{size[0]} x {size[1]} pixels: {error}") from None
        return self._size_tokens[size]

    def _capped(self, image: "Image") -> "Image":
        from PIL.Image import Resampling

        size = image.size if self._max_pixels is None else fitting(image.size, self._max_pixels)
        return image if size == image.size else image.resize(size, Resampling.LANCZOS)


def _opening(tokenizer: Any) -> str:
    """What the tokenizer puts before a text by itself: its token of beginning, or nothing."""
    ids = tokenizer("")["input_ids"]
    return str(tokenizer.bos_token) if ids[:1] == [tokenizer.bos_token_id] else ""


def _stops(folder: Path, tokenizer: Any) -> frozenset[str]:
    """The tokens at which sampling stops: the tokenizer's end and those of the generation config."""
    file = folder / "generation_config.json"
    found = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
    ids = [found] if isinstance(found, int) else found or []
    return frozenset({str(tokenizer.eos_token), *tokenizer.convert_ids_to_tokens(ids)})


def _check_conventions(reader: StudentReader, folder: str) -> None:
    """Raise ConfigError where processor or template break what every stage leans on."""
    if getattr(reader.processor, "image_token", None) is None:
        raise ConfigError(
            f"The processor in {folder} ({type(reader.processor).__name__}) has no `image_token`, so nobody can tell where "
            "images stand in a prompt. Take a model whose processor follows transformers' conventions (docs/models.md)."
        )
    if reader.processor.tokenizer.eos_token is None or reader.processor.tokenizer.pad_token is None:
        raise ConfigError(
            f"The tokenizer in {folder} lacks an end or a padding token (eos_token, pad_token), so answers could not end or "
            "batches not be filled up. Set both in its tokenizer_config.json."
        )
    picture = [{"type": "image"}, {"type": "text", "text": "?"}]
    text, _ = rendered(reader.processor, [{"role": "user", "content": picture}])
    if text.count(reader.mark) != 1:
        raise ConfigError(
            f"The chat template in {folder} renders one image as {text.count(reader.mark)} marks {reader.mark!r}, and one is "
            "what engines and trainers expect. Take the template that the model was published with."
        )
    reader.answer([Turn("user", "?", ())], "!")
