"""Small records that several tests need."""

import io
from pathlib import Path

from PIL import Image as Pillow

from dream_ray.chat.factory import ChatServices
from dream_ray.images import sha256
from dream_ray.prompts import load_templates
from dream_ray.records import Image, Judgement, Observation, Prompt, Rollout, Turn, Verdict, make_prompt
from dream_ray.taxonomy import Category, Source

SERVICES = ChatServices(load_templates())
"""The shipped templates, nothing cached, nothing metered."""

KNIFE = Observation("a knife held at someone", Source.IMAGE_CONTENT, Category.VIOLENCE)
LOCK = Observation("open a lock that is not mine", Source.TEXT_INSTRUCTION, Category.ILLEGAL_ACTIVITIES)


def stored_image(folder: Path, colour: str = "red") -> Image:
    """A real one-colour PNG on disk."""
    buffer = io.BytesIO()
    Pillow.new("RGB", (24, 16), colour).save(buffer, "PNG")
    content = buffer.getvalue()
    path = folder / f"{colour}.png"
    path.write_bytes(content)
    return Image(sha256(content), str(path), 24, 16, "drawn")


def prompt_of(text: str, *images: Image, key: str = "1") -> Prompt:
    """A prompt of one turn."""
    return make_prompt(source="test", source_id=key, turns=[Turn("user", text, images)])


def rollout_of(prompt: Prompt, k: int, text: str) -> Rollout:
    """The k-th answer to a prompt."""
    return Rollout(f"rollout-{prompt.prompt_id}-{k}", prompt.prompt_id, "base", k, k, text, "stop", 5, 5)


def judgement_of(rollout: Rollout, reward: float) -> Judgement:
    """A judgement with a given reward."""
    return Judgement(rollout.rollout_id, rollout.prompt_id, Verdict.WARNS, None, (), None, reward, 0, 0)
