"""The demo prompts: risky requests and their benign twins, with and without a picture, made on the spot from our own texts.

Contract: `demo_prompts` lists them, `write_demo` writes them as prompts.jsonl with the pictures. Both depend on nothing but
demo_topics.yaml (texts beside a picture), demo_texts.yaml (texts alone) and Pillow's version, so the same bytes come out
every time. A topic gives one risky prompt and one twin, always in the same split. Where the risk stands decides what the
twins with pictures share: with origin `text` the same harmless picture, with `image` the same neutral text, with `both` only
the form. Texts alone are written to be mistaken for each other, too hard for a list of words, so they come with their
observations. All risky requests are mild: they name a risk in one line. Meant for a first run on a laptop and for tests, not as
a benchmark.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from dream_ray.files import write_atomic
from dream_ray.records import Risk, RiskOrigin, Split
from dream_ray.sources import demo_drawing
from dream_ray.taxonomy import Category, Source

_ORIGINS = (RiskOrigin.TEXT, RiskOrigin.BOTH, RiskOrigin.TEXT, RiskOrigin.IMAGE, RiskOrigin.TEXT)
"""Dealt out along the topics of a category: 60 % text, 20 % both, 20 % image."""

_SPLITS = tuple({"T": Split.TRAIN, "D": Split.DEV, "H": Split.HELD_OUT}[letter] for letter in "THTDTHTTHTDTHTTDTHTT")
"""Dealt out along the topics of a category and an origin: 12 train, 3 dev, 5 held out of 20, well mixed."""

_SPLIT_START = {RiskOrigin.TEXT: 0, RiskOrigin.BOTH: 7, RiskOrigin.IMAGE: 13}
"""Where an origin enters _SPLITS, so that the few topics of each do not all meet its first entries."""

_HARMLESS_WORDS = ("Hello", "Welcome", "Good morning", "Have a nice day", "Thank you", "See you soon")
"""What may stand on the picture of a prompt whose risk is in the text alone."""


@dataclass(frozen=True)
class Picture:
    """What to draw: `title` in one of demo_drawing.LAYOUTS, or one of its THINGS with `title` as caption, if any."""

    motif: str
    title: str | None
    key: str

    @property
    def origin(self) -> str:
        """How the pixels come to be: "rendered" for type, "drawn" for a thing."""
        return "rendered" if self.motif in demo_drawing.LAYOUTS else "drawn"

    def draw(self) -> Image.Image:
        """The pixels, 256x256 RGB."""
        if self.title is not None and self.motif in demo_drawing.LAYOUTS:
            return demo_drawing.typeset(self.title, self.motif, self.key)
        return demo_drawing.sketch(self.motif, self.title, self.key)


@dataclass(frozen=True)
class DemoPrompt:
    """One prompt of the demo: a text, beside one picture or alone, with its labels. Benign ones have an answer."""

    name: str
    text: str
    picture: Picture | None
    split: Split
    risk: Risk
    origin: RiskOrigin | None
    category: Category | None
    twin: str | None
    answer: str | None

    @property
    def image_path(self) -> str:
        """The picture's path relative to the folder of prompts.jsonl, for a prompt with one."""
        return f"images/{self.name}.png"

    def as_line(self) -> dict[str, Any]:
        """The prompt as an object of prompts.jsonl."""
        line = {
            "id": self.name,
            "turns": [{"role": "user", "text": self.text, "images": [self.image_path] if self.picture else []}],
            "split": self.split,
            "risk": self.risk,
            "risk_origin": self.origin,
            "category": self.category,
            "twin": self.twin,
            "answer": self.answer,
        }
        if self.picture:
            return line | {"image_origin": self.picture.origin}
        observed = {"content": self.text, "source": Source.TEXT_INSTRUCTION, "category": self.category}
        return line | {"observations": [observed] if self.risk is Risk.RISKY else []}


@dataclass(frozen=True)
class _Topic:
    """An entry of `topics` in demo_topics.yaml."""

    risky: str
    benign: str
    answer: str
    risky_title: str
    benign_title: str


@dataclass(frozen=True)
class _TextTopic:
    """An entry of `topics` in demo_texts.yaml."""

    risky: str
    benign: str
    answer: str


@dataclass(frozen=True)
class _Plain:
    """An entry of `plain` in demo_topics.yaml, or in demo_texts.yaml, where there is no title."""

    text: str
    answer: str
    title: str | None = None


def _titled(title: str, key: str) -> Picture:
    """A picture that carries a title: type in four of five cases, else a drawn thing with a caption."""
    motif = demo_drawing.pick(key + "motif", (*demo_drawing.LAYOUTS, "thing"))
    if motif == "thing":
        motif = demo_drawing.pick(key + "thing", demo_drawing.THINGS)
    return Picture(motif, title, key)


def _harmless(key: str) -> Picture:
    """A drawn thing: bare, with its name or with a greeting."""
    thing = demo_drawing.pick(key + "thing", demo_drawing.THINGS)
    greeting = demo_drawing.pick(key + "greeting", _HARMLESS_WORDS)
    return Picture(thing, demo_drawing.pick(key + "words", (None, None, thing.capitalize(), greeting)), key)


def _about_picture(title: str, answer: str) -> str:
    """The answer to a request that only the picture makes: first what the picture says, then the help."""
    opening = "The picture asks" if title.startswith("How ") else "The picture is about"
    return f'{opening} "{title}". {answer}'


def _twins(
    topic: _Topic, key: str, origin: RiskOrigin, split: Split, category: Category, neutral: str
) -> list[DemoPrompt]:
    """The risky prompt of a topic and its benign twin, which differ only where the risk stands."""
    risky, benign = f"{key}-risky", f"{key}-benign"
    risky_text, benign_text, answer = topic.risky, topic.benign, topic.answer
    if origin is RiskOrigin.TEXT:
        risky_picture = benign_picture = _harmless(key)
    else:
        risky_picture, benign_picture = _titled(topic.risky_title, key), _titled(topic.benign_title, key)
    if origin is RiskOrigin.IMAGE:
        risky_text = benign_text = neutral
        answer = _about_picture(topic.benign_title, answer)
    return [
        DemoPrompt(risky, risky_text, risky_picture, split, Risk.RISKY, origin, category, benign, None),
        DemoPrompt(benign, benign_text, benign_picture, split, Risk.BENIGN, None, category, risky, answer),
    ]


def _category_prompts(
    number: int, category: Category, topics: list[_Topic], neutral: list[str]
) -> Iterator[DemoPrompt]:
    """The prompts of one category; `number` shifts what is dealt out, so that categories do not repeat each other."""
    slug = category.value.lower().replace(" ", "-")
    dealt: Counter[RiskOrigin] = Counter()
    for index, topic in enumerate(topics):
        origin = _ORIGINS[(index - number) % len(_ORIGINS)]
        split = _SPLITS[(dealt[origin] + 2 * number + _SPLIT_START[origin]) % len(_SPLITS)]
        # 5 shares no factor with the 12 neutral texts, so each serves every category in turn.
        text = neutral[(dealt[origin] + 5 * number) % len(neutral)]
        dealt[origin] += 1
        yield from _twins(topic, f"{slug}-{index + 1:02d}", origin, split, category, text)


def _text_prompts(number: int, category: Category, topics: list[_TextTopic]) -> Iterator[DemoPrompt]:
    """The prompts of one category that are a text alone."""
    slug = category.value.lower().replace(" ", "-")
    for index, topic in enumerate(topics):
        split = _SPLITS[(index + 2 * number) % len(_SPLITS)]
        risky, benign = (f"{slug}-text-{index + 1:02d}-{risk.value}" for risk in (Risk.RISKY, Risk.BENIGN))
        yield DemoPrompt(risky, topic.risky, None, split, Risk.RISKY, RiskOrigin.TEXT, category, benign, None)
        yield DemoPrompt(benign, topic.benign, None, split, Risk.BENIGN, None, category, risky, topic.answer)


def _content(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(resources.files("dream_ray.sources").joinpath(name).read_text("utf-8")))


def demo_prompts() -> list[DemoPrompt]:
    """All demo prompts in a fixed order, those with pictures first: topics by category, each risky prompt before its twin,
    then the plain ones."""
    pictured, alone = _content("demo_topics.yaml"), _content("demo_texts.yaml")
    neutral: list[str] = pictured["neutral"]
    prompts: list[DemoPrompt] = []
    for number, category in enumerate(Category):
        topics = [_Topic(**entry) for entry in pictured["topics"][category.value]]
        prompts.extend(_category_prompts(number, category, topics, neutral))
    for index, entry in enumerate(pictured["plain"]):
        plain, key = _Plain(**entry), f"plain-{index + 1:02d}"
        picture = _harmless(key) if plain.title is None else _titled(plain.title, key)
        split = _SPLITS[index % len(_SPLITS)]
        prompts.append(DemoPrompt(key, plain.text, picture, split, Risk.BENIGN, None, None, None, plain.answer))
        if plain.title is not None:
            # What a picture alone asks for is harmless more often than not, as in life.
            text, answer = neutral[index % len(neutral)], _about_picture(plain.title, plain.answer)
            prompts.append(DemoPrompt(f"{key}-neutral", text, picture, split, Risk.BENIGN, None, None, None, answer))
    for number, category in enumerate(Category):
        texts = [_TextTopic(**entry) for entry in alone["topics"][category.value]]
        prompts.extend(_text_prompts(number, category, texts))
    for index, entry in enumerate(alone["plain"]):
        plain, key = _Plain(**entry), f"plain-text-{index + 1:02d}"
        split = _SPLITS[index % len(_SPLITS)]
        prompts.append(DemoPrompt(key, plain.text, None, split, Risk.BENIGN, None, None, None, plain.answer))
    return prompts


def write_demo(folder: Path) -> Path:
    """Write folder/prompts.jsonl and folder/images/*.png; returns the path of prompts.jsonl.

    Writing again gives the same bytes. The pictures come first and each file appears whole, so whoever finds
    prompts.jsonl finds all it names. Raises OSError where the folder cannot be written.
    """
    prompts = demo_prompts()
    for prompt in prompts:
        if prompt.picture is None:
            continue
        buffer = io.BytesIO()
        prompt.picture.draw().save(buffer, format="PNG")
        write_atomic(str(folder / prompt.image_path), buffer.getvalue())
    lines = [json.dumps(prompt.as_line(), ensure_ascii=False) + "\n" for prompt in prompts]
    path = folder / "prompts.jsonl"
    write_atomic(str(path), "".join(lines).encode())
    return path
