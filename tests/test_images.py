"""Images from outside: each ends in the right pixels, stored so that any decoder sees them, or in a reason."""

import io
import random
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from dream_ray.config import ImageConfig
from dream_ray.images import BadImage, decode, placeholder, storable

LIMITS = ImageConfig()
RED, BLUE, WHITE = (220, 30, 40), (20, 40, 200), (255, 255, 255)


def halves(mode: str = "RGB", size: tuple[int, int] = (8, 4)) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def near(pixel: object, wanted: tuple[int, int, int], by: int = 12) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= by for a, b in zip(pixel, wanted, strict=True))


def plain_decoder(content: bytes) -> Image.Image:
    """What a decoder shows that knows nothing of orientation, transparency or depth."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def with_orientation(tag: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = tag
    return encoded(halves(size=(32, 16)), "JPEG", exif=exif, quality=95, subsampling=0)


def png16(colour_type: int, *pixels: tuple[int, ...]) -> bytes:
    """A PNG of 16 bits a channel, one row twice, written by hand: Pillow's own writer is not what is under test."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = (b"\0" + b"".join(struct.pack(f">{len(pixel)}H", *pixel) for pixel in pixels)) * 2
    header = struct.pack(">IIBBBBB", len(pixels), 2, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey16(value: int) -> bytes:
    return png16(0, (value,), (value,))


@pytest.mark.parametrize(
    "content",
    [
        encoded(halves()),
        encoded(halves(), "JPEG", quality=95),
        encoded(halves(), "WEBP", lossless=True),
        encoded(halves("L")),
    ],
    ids=["png", "jpeg", "webp", "grey"],
)
def test_plain_images_are_stored_as_they_came(content: bytes) -> None:
    stored, pixels = storable(content, LIMITS)
    assert stored == content
    assert pixels.mode == "RGB"


@pytest.mark.parametrize(
    ("content", "left", "right"),
    [
        (encoded(halves("CMYK").resize((64, 32)), "JPEG", quality=95), RED, BLUE),
        (encoded(halves("P")), RED, BLUE),
        (encoded(halves(), "BMP"), RED, BLUE),
        (encoded(halves("P"), "GIF"), RED, BLUE),
        (grey16(0x8000), (128, 128, 128), (128, 128, 128)),
        (png16(2, (0xDC1E, 0x1E14, 0x28FF), (0x14AA, 0x28FF, 0xC800)), RED, BLUE),
    ],
    ids=["cmyk", "palette", "bmp", "gif of one frame", "16-bit grey", "16-bit colours"],
)
def test_odd_images_get_the_right_pixels(
    content: bytes, left: tuple[int, int, int], right: tuple[int, int, int]
) -> None:
    stored, pixels = storable(content, LIMITS)
    assert stored != content
    assert storable(stored, LIMITS)[0] == stored
    for image in (pixels, plain_decoder(stored), decode(stored, LIMITS)):
        assert near(image.getpixel((0, 0)), left, 40)
        assert near(image.getpixel((image.width - 1, image.height - 1)), right, 40)


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (*RED, 0))
    clear.paste((*BLUE, 255), (0, 0, 2, 4))
    named = encoded(Image.new("P", (4, 4), 0), transparency=0)
    for content, at in ((encoded(clear), (3, 0)), (encoded(clear, "WEBP", lossless=True), (3, 0)), (named, (0, 0))):
        stored, pixels = storable(content, LIMITS)
        assert pixels.getpixel(at) == WHITE == plain_decoder(stored).getpixel(at)
    assert decode(encoded(clear), LIMITS).getpixel((0, 0)) == BLUE


@pytest.mark.parametrize(
    ("tag", "size", "corner"), [(3, (32, 16), BLUE), (6, (16, 32), RED), (8, (16, 32), BLUE), (2, (32, 16), BLUE)]
)
def test_turned_photos_are_stored_upright(tag: int, size: tuple[int, int], corner: tuple[int, int, int]) -> None:
    stored, pixels = storable(with_orientation(tag), LIMITS)
    for image in (pixels, plain_decoder(stored)):
        assert image.size == size
        assert near(image.getpixel((0, 0)), corner)
    assert storable(stored, LIMITS)[0] == stored


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "image_empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "image_unknown_format"),
        (b"hello", "image_unknown_format"),
        (encoded(halves(size=(64, 64)).effect_spread(9))[:300], "image_broken"),
        (encoded(halves(size=(64, 64)).effect_spread(9), "JPEG")[:700], "image_broken"),
        (encoded(halves(), "GIF", save_all=True, append_images=[halves("L")]), "image_animated"),
        (encoded(halves(), "WEBP", save_all=True, append_images=[halves("L")]), "image_animated"),
        (encoded(halves(), "PNG", save_all=True, append_images=[halves("L")]), "image_animated"),
        (encoded(Image.new("1", (10_000, 10_000))), "image_too_many_pixels"),
        (encoded(Image.new("1", (20_000, 20_000))), "image_too_many_pixels"),
        (b"\x89PNG" + bytes(LIMITS.max_bytes), "image_too_many_bytes"),
        (encoded(halves(), "TIFF"), "image_unknown_format"),
    ],
    ids=[
        "empty",
        "svg",
        "text",
        "cut png",
        "cut jpeg",
        "gif",
        "webp",
        "apng",
        "100 Mpixel",
        "400 Mpixel",
        "big",
        "tiff",
    ],
)
def test_what_cannot_be_used_says_why(content: bytes, reason: str) -> None:
    with pytest.raises(BadImage) as error:
        storable(content, LIMITS)
    assert error.value.reason == reason


def test_an_image_that_grows_over_the_limit_is_refused() -> None:
    noise = Image.effect_noise((200, 200), 90).convert("P")
    content = encoded(noise)
    with pytest.raises(BadImage, match="as plain RGB"):
        storable(content, ImageConfig(max_bytes=len(content)))


def test_the_placeholder_is_an_image() -> None:
    assert storable(placeholder(), LIMITS)[0] == placeholder()


def test_broken_bytes_end_in_a_reason_and_nothing_else() -> None:
    """Bytes changed at random: pixels or BadImage, never another exception."""
    random.seed(5)
    seeds = [
        encoded(halves(size=(24, 24))),
        encoded(halves("P"), "GIF"),
        encoded(halves(size=(24, 24)), "WEBP"),
        with_orientation(6),
        encoded(halves(), "BMP"),
        grey16(7),
    ]
    refused = 0
    for _ in range(1500):
        content = bytearray(random.choice(seeds))
        for _ in range(random.randint(1, 6)):
            content[random.randrange(len(content))] = random.randrange(256)
        try:
            storable(bytes(content), LIMITS)
        except BadImage:
            refused += 1
    assert 0 < refused < 1500


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "really_webp.png"
    path.write_bytes(encoded(halves(), "WEBP", lossless=True))
    assert decode(path.read_bytes(), LIMITS).getpixel((0, 0)) == RED
