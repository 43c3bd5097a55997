import base64
import io

import pytest
from PIL import Image

from dream_ray.chat.encode import data_uri, fitting
from dream_ray.images import BadImage


def encoded(kind: str, size: tuple[int, int] = (60, 30), **options: object) -> bytes:
    content = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(content, kind, **options)
    return content.getvalue()


def opened(uri: str) -> tuple[str, Image.Image]:
    head, _, content = uri.partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert head == f"data:image/{(image.format or '').lower()};base64"
    return image.format or "", image


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_what_fits_goes_out_byte_for_byte(kind: str) -> None:
    content = encoded(kind)
    uri = data_uri(content, 1800)
    assert base64.b64decode(uri.partition(",")[2]) == content
    assert opened(uri)[0] == kind


@pytest.mark.parametrize(("kind", "sent"), [("PNG", "PNG"), ("JPEG", "JPEG"), ("WEBP", "JPEG"), ("BMP", "PNG")])
def test_what_is_too_large_is_scaled_down(kind: str, sent: str) -> None:
    form, image = opened(data_uri(encoded(kind, (600, 300)), 1800))
    assert (form, image.size) == (sent, (60, 30))
    # The picture is still the gradient, dark above and light below.
    assert image.convert("L").getpixel((30, 2)) < 50 < 200 < image.convert("L").getpixel((30, 27))


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_formats_that_not_all_endpoints_take_become_png(kind: str) -> None:
    assert opened(data_uri(encoded(kind), 1800))[0] == "PNG"


def test_a_turned_photograph_is_sent_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    form, image = opened(data_uri(encoded("JPEG", exif=exif), 1800))
    assert (form, image.size) == ("JPEG", (30, 60))
    assert image.getexif().get(0x0112) is None


def test_a_moving_picture_is_refused_as_at_ingest() -> None:
    content = io.BytesIO()
    frames = [Image.new("RGB", (10, 10), colour) for colour in ("red", "blue")]
    frames[0].save(content, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(BadImage) as caught:
        data_uri(content.getvalue(), 1800)
    assert caught.value.reason == "image_animated"


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "image_unknown_format"), (b"text", "image_unknown_format"), (None, "image_broken")]
)
def test_what_is_no_image_has_a_reason(content: bytes | None, reason: str) -> None:
    with pytest.raises(BadImage) as caught:
        data_uri(encoded("PNG", (600, 300))[:300] if content is None else content, 1800)
    assert caught.value.reason == reason


@pytest.mark.parametrize("size", [(1, 1), (60, 30), (4000, 3000), (100_000, 1), (1, 100_000), (33, 31)])
def test_no_size_passes_the_cap(size: tuple[int, int]) -> None:
    width, height = fitting(size, 1024)
    assert 1 <= width * height <= 1024
    assert width <= size[0]
    assert height <= size[1]
