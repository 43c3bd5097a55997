"""Encoded images as the data URIs that chat endpoints take, within a pixel cap.

Contract: pure. Bytes that are within the cap, upright, still and of a format that all endpoints take go out untouched;
others are decoded (images.py), scaled down and encoded anew. The limits on what may be decoded were enforced when the
image was read from the run's store.
"""

import base64
import io
import math

from PIL import ExifTags, Image, UnidentifiedImageError

from dream_ray import images
from dream_ray.config import ImageConfig

UNTOUCHED = ("PNG", "JPEG", "WEBP")
"""Formats that go out as they came."""

JPEG_QUALITY = 90
"""For photographs that were scaled down."""


def data_uri(content: bytes, max_pixels: int) -> str:
    """`data:image/...;base64,...` of an encoded image with at most `max_pixels` (width x height). Raises BadImage."""
    try:
        image = Image.open(io.BytesIO(content), formats=images.FORMATS)
        upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "image_unknown_format" if isinstance(error, UnidentifiedImageError) else "image_broken"
        raise images.BadImage(reason, str(error)) from None
    kind, pixels = image.format or "", image.width * image.height
    if kind in UNTOUCHED and pixels <= max_pixels and upright and not getattr(image, "is_animated", False):
        return _uri(kind, content)
    decoded = images.decode(content, ImageConfig(max_bytes=len(content), max_pixels=pixels))
    scaled = decoded.resize(fitting(decoded.size, max_pixels), Image.Resampling.LANCZOS)
    # Drawn or written pictures keep their edges in PNG; a photograph would become several times as large.
    kind = "PNG" if kind in ("PNG", "GIF", "BMP") else "JPEG"
    encoded = io.BytesIO()
    scaled.save(encoded, kind, quality=JPEG_QUALITY)
    return _uri(kind, encoded.getvalue())


def fitting(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """The largest width and height of the same shape with at most `max_pixels`; never larger than `size`."""
    width, height = size
    scale = min(1.0, math.sqrt(max_pixels / (width * height)))
    fitted = max(1, int(width * scale)), max(1, int(height * scale))
    # A strip of one pixel's height cannot keep its shape.
    return min(fitted[0], max_pixels), min(fitted[1], max_pixels)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode('ascii')}"
