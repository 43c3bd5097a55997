"""The pictures of the demo prompts: a title set in type, or a simple thing drawn with or without a caption.

Contract: pure functions from words to a 256x256 RGB picture. The same arguments give the same pixels for one version of
Pillow: the font is Pillow's built-in one, colours are picked by a hash of `key`, nothing reads a clock or a random
generator. A title that does not fit legibly raises `TitleTooLong`; it is never cut. Knows nothing about prompts.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar, cast

from PIL import Image, ImageDraw, ImageFont

SIZE = 256
"""Width and height in pixels."""

LAYOUTS = ("note", "sign", "screen", "list")
"""How `typeset` can dress a title."""

_LARGEST, _SMALLEST = 34, 18
"""Font sizes in pixels; OCR reads Pillow's built-in font reliably from 18 up at this picture size."""

Option = TypeVar("Option")


class TitleTooLong(ValueError):
    """A title that cannot be set legibly in its place."""


@dataclass(frozen=True)
class Box:
    """A place for text, in pixels from the top left corner."""

    left: int
    top: int
    right: int
    bottom: int


def pick(key: str, options: Sequence[Option]) -> Option:
    """One of the options, the same for the same key in every run and on every machine."""
    return options[int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % len(options)]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # With a size, load_default gives the built-in TrueType font or raises; its return type also names the bitmap font.
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=size))


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str] | None:
    """Lines no wider than `width` pixels, broken at spaces only, or None where one word is wider than that."""
    lines: list[str] = []
    for word in text.split():
        if font.getlength(word) > width:
            return None
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _set_text(draw: ImageDraw.ImageDraw, text: str, box: Box, colour: str, centred: bool) -> None:
    """Write the text as large as the box allows, in the middle of its height."""
    for size in range(_LARGEST, _SMALLEST - 1, -1):
        font, line_height = _font(size), round(size * 1.25)
        lines = _wrap(text, font, box.right - box.left)
        if lines is not None and len(lines) * line_height <= box.bottom - box.top:
            break
    else:
        raise TitleTooLong(
            f"The title {text!r} does not fit into {box.right - box.left}x{box.bottom - box.top} pixels at font size "
            f"{_SMALLEST}, the smallest that OCR reads reliably. Shorten it to about eight words."
        )
    top = box.top + (box.bottom - box.top - len(lines) * line_height) // 2
    for number, line in enumerate(lines):
        left = box.left + (int(box.right - box.left - font.getlength(line)) // 2 if centred else 0)
        draw.text((left, top + number * line_height), line, fill=colour, font=font)


def _canvas(colour: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIZE, SIZE), colour)
    return image, ImageDraw.Draw(image)


def _note(title: str, key: str) -> Image.Image:
    """A pinned paper note."""
    image, draw = _canvas(pick(key + "wall", ("#c9b79c", "#b9c4c9", "#a8b8a0")))
    draw.rectangle((18, 22, 242, 244), fill="#8f8778")
    draw.rectangle((12, 16, 236, 238), fill=pick(key + "paper", ("#fff6b8", "#fdfdf5", "#ffe3e3", "#e6f4ff")))
    draw.ellipse((116, 8, 132, 24), fill="#c0392b")
    _set_text(draw, title, Box(24, 34, 226, 228), "#22252b", centred=False)
    return image


def _sign(title: str, key: str) -> Image.Image:
    """A board on two posts."""
    image, draw = _canvas(pick(key + "sky", ("#cfe8f7", "#e9eef2", "#fbeed5")))
    draw.rectangle((0, 216, SIZE, SIZE), fill="#8fae7c")
    for left in (52, 192):
        draw.rectangle((left, 180, left + 12, 240), fill="#5f5448")
    board = pick(key + "board", ("#1f5a93", "#2f6b45", "#7a2e2e", "#3b3f46"))
    draw.rounded_rectangle((10, 20, 246, 190), radius=14, fill=board, outline="#ffffff", width=4)
    _set_text(draw, title, Box(24, 32, 232, 178), "#ffffff", centred=True)
    return image


def _screen(title: str, key: str) -> Image.Image:
    """A window on a screen."""
    image, draw = _canvas("#2b2f36")
    dark = pick(key + "mode", (True, False))
    draw.rectangle((8, 8, 248, 232), fill="#15181d" if dark else "#fafafa")
    draw.rectangle((8, 8, 248, 34), fill=pick(key + "bar", ("#4a6fa5", "#6b6f76", "#5b8a72")))
    for number, colour in enumerate(("#e06c5f", "#e5c05c", "#7fbf7a")):
        draw.ellipse((16 + 18 * number, 15, 28 + 18 * number, 27), fill=colour)
    _set_text(draw, title, Box(22, 46, 236, 222), "#e9edf2" if dark else "#1d2026", centred=False)
    return image


def _list(title: str, key: str) -> Image.Image:
    """A heading over three numbered, empty lines, which invite to fill them in."""
    image, draw = _canvas(pick(key + "page", ("#ffffff", "#f4f1ea", "#eef3ea")))
    _set_text(draw, title, Box(16, 12, 240, 142), "#101418", centred=False)
    for number in (1, 2, 3):
        top = 116 + 34 * number
        draw.text((18, top), f"{number}.", fill="#101418", font=_font(24))
        draw.line((52, top + 26, 236, top + 26), fill="#8a9099", width=2)
    return image


_DRESS: dict[str, Callable[[str, str], Image.Image]] = {"note": _note, "sign": _sign, "screen": _screen, "list": _list}


def typeset(title: str, layout: str, key: str) -> Image.Image:
    """A picture of type: `title` in one of LAYOUTS, colours by `key`. Raises TitleTooLong."""
    return _DRESS[layout](title, key)


_INK = "#33373d"
_PALETTE = (
    ("#c8553d", "#f2d0a4"),
    ("#3d6fa5", "#e8eef5"),
    ("#4f8a5b", "#f3e9c6"),
    ("#8a5a9e", "#f0e2c8"),
    ("#d19a2a", "#fdf6e3"),
)
"""Main and second colour of a drawn thing."""

# A thing is a list of shapes, painted in order: what to draw, its points on a square of 100x100, and which colour.
_THINGS: dict[str, tuple[tuple[str, tuple[int, ...], str], ...]] = {
    "house": (
        ("rectangle", (20, 45, 80, 95), "second"),
        ("polygon", (12, 47, 50, 12, 88, 47), "main"),
        ("rectangle", (42, 65, 58, 95), "ink"),
        ("rectangle", (26, 55, 37, 67), "main"),
    ),
    "tree": (("rectangle", (44, 60, 56, 96), "ink"), ("ellipse", (18, 8, 82, 68), "main")),
    "cup": (
        ("ellipse", (62, 38, 92, 72), "main"),
        ("ellipse", (70, 46, 84, 64), "back"),
        ("polygon", (18, 28, 76, 28, 70, 86, 24, 86), "main"),
        ("ellipse", (18, 22, 76, 34), "second"),
    ),
    "boat": (
        ("polygon", (10, 68, 90, 68, 74, 90, 26, 90), "main"),
        ("line", (50, 10, 50, 68), "ink"),
        ("polygon", (54, 14, 54, 62, 86, 62), "second"),
    ),
    "dog": (
        ("rectangle", (24, 46, 72, 70), "main"),
        ("rectangle", (26, 68, 34, 94), "main"),
        ("rectangle", (62, 68, 70, 94), "main"),
        ("ellipse", (60, 22, 92, 52), "main"),
        ("ellipse", (60, 22, 70, 46), "ink"),
        ("ellipse", (78, 30, 83, 35), "ink"),
        ("line", (24, 50, 10, 32), "main"),
    ),
    "phone": (
        ("rectangle", (30, 6, 70, 96), "ink"),
        ("rectangle", (34, 14, 66, 82), "second"),
        ("ellipse", (46, 85, 54, 93), "main"),
    ),
    "bottle": (
        ("rectangle", (42, 6, 58, 30), "ink"),
        ("polygon", (42, 26, 58, 26, 68, 44, 68, 96, 32, 96, 32, 44), "main"),
        ("rectangle", (32, 56, 68, 78), "second"),
    ),
    "car": (
        ("polygon", (26, 52, 38, 30, 66, 30, 78, 52), "second"),
        ("rectangle", (8, 50, 92, 76), "main"),
        ("ellipse", (18, 66, 40, 88), "ink"),
        ("ellipse", (62, 66, 84, 88), "ink"),
    ),
    "lamp": (
        ("polygon", (34, 10, 66, 10, 82, 48, 18, 48), "main"),
        ("rectangle", (47, 48, 53, 88), "ink"),
        ("ellipse", (30, 84, 70, 96), "ink"),
    ),
    "book": (
        ("polygon", (8, 24, 50, 34, 50, 90, 8, 80), "main"),
        ("polygon", (92, 24, 50, 34, 50, 90, 92, 80), "second"),
        ("line", (50, 34, 50, 90), "ink"),
    ),
    "flower": (
        ("line", (50, 46, 50, 96), "ink"),
        ("ellipse", (36, 8, 64, 36), "main"),
        ("ellipse", (36, 40, 64, 68), "main"),
        ("ellipse", (20, 24, 48, 52), "main"),
        ("ellipse", (52, 24, 80, 52), "main"),
        ("ellipse", (40, 28, 60, 48), "second"),
    ),
    "fish": (
        ("polygon", (68, 50, 94, 26, 94, 74), "main"),
        ("ellipse", (8, 28, 76, 72), "main"),
        ("ellipse", (20, 42, 28, 50), "ink"),
    ),
    "clock": (
        ("ellipse", (10, 10, 90, 90), "main"),
        ("ellipse", (18, 18, 82, 82), "second"),
        ("line", (50, 50, 50, 26), "ink"),
        ("line", (50, 50, 68, 58), "ink"),
    ),
    "chair": (
        ("rectangle", (24, 8, 34, 94), "main"),
        ("rectangle", (24, 52, 78, 62), "main"),
        ("rectangle", (68, 60, 78, 94), "main"),
        ("rectangle", (34, 44, 76, 52), "second"),
    ),
    "kite": (
        ("polygon", (50, 6, 78, 38, 50, 74, 22, 38), "main"),
        ("line", (22, 38, 78, 38), "ink"),
        ("line", (50, 6, 50, 74), "ink"),
        ("line", (50, 74, 64, 96), "ink"),
    ),
    "apple": (
        ("ellipse", (16, 28, 62, 90), "main"),
        ("ellipse", (38, 28, 84, 90), "main"),
        ("line", (50, 34, 56, 10), "ink"),
        ("ellipse", (56, 8, 78, 20), "second"),
    ),
}

THINGS = tuple(_THINGS)
"""What `sketch` can draw."""

_STRIP = 92
"""Height of the caption strip in pixels: three lines at the smallest size."""


def sketch(thing: str, caption: str | None, key: str) -> Image.Image:
    """A drawing of one of THINGS; a caption stands on a strip at the top or the bottom. Raises TitleTooLong."""
    background = pick(key + "back", ("#dcecf5", "#f3efe4", "#e4f0e0", "#f5e6e6"))
    image, draw = _canvas(background)
    main, second = pick(key + "palette", _PALETTE)
    colours = {"main": main, "second": second, "ink": _INK, "back": background}
    strip_on_top = pick(key + "strip", (True, False))
    side = SIZE - 56 if caption is None else SIZE - _STRIP - 24
    left = (SIZE - side) // 2
    top = left if caption is None else 12 + (_STRIP if strip_on_top else 0)
    draw.line((0, top + side - 6, SIZE, top + side - 6), fill="#b4b0a6", width=3)
    for shape, points, colour in _THINGS[thing]:
        placed = [
            (left + x * side // 100, top + y * side // 100) for x, y in zip(points[::2], points[1::2], strict=True)
        ]
        if shape == "line":
            draw.line(placed, fill=colours[colour], width=5)
        elif shape == "polygon":
            draw.polygon(placed, fill=colours[colour], outline=_INK)
        elif shape == "ellipse":
            draw.ellipse(placed, fill=colours[colour], outline=_INK)
        else:
            draw.rectangle(placed, fill=colours[colour], outline=_INK)
    if caption is not None:
        strip = 0 if strip_on_top else SIZE - _STRIP
        draw.rectangle((0, strip, SIZE, strip + _STRIP), fill="#ffffff")
        _set_text(draw, caption, Box(10, strip + 8, SIZE - 10, strip + _STRIP - 6), "#101418", centred=True)
    return image
