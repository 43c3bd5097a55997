"""Image bytes to pixels, under limits.

Contract: the only place that decodes images. Bytes are judged by content, not by name; what is too large, truncated or no
image raises `BadImage` with a reason for the errors table. Pixels come out as RGB, upright.
"""

import base64
import binascii
import hashlib
import io

from PIL import Image, ImageOps, UnidentifiedImageError

from dream_ray.config import ImageConfig

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What Pillow is allowed to try: formats that prompts come in, none with external references."""

DATA_URI = "data:"
"""How a uri begins that is the image itself."""


class BadImage(ValueError):
    """Bytes that cannot be used as an image; `reason` is a short word for counting."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def decode(content: bytes, limits: ImageConfig) -> Image.Image:
    """Upright RGB pixels of an encoded image. Raises BadImage."""
    if not content:
        raise BadImage("image_empty", "zero bytes")
    if len(content) > limits.max_bytes:
        raise BadImage("image_too_many_bytes", f"{len(content)} bytes, limit {limits.max_bytes}")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        if width * height > limits.max_pixels:
            raise BadImage("image_too_many_pixels", f"{width}x{height}, limit {limits.max_pixels} pixels")
        return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise BadImage("image_unknown_format", f"not one of {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, BadImage):
            raise
        raise BadImage("image_broken", str(error)) from None


def from_data_uri(uri: str, limits: ImageConfig) -> bytes:
    """The encoded image that a `data:image/...;base64,...` uri holds; what it says of its type is not believed.

    Raises BadImage "image_bad_data_uri", or "image_too_many_bytes" before anything is decoded.
    """
    head, separator, text = uri.partition(",")
    if not separator or not head.startswith(f"{DATA_URI}image/") or not head.endswith(";base64"):
        raise BadImage("image_bad_data_uri", "not of the form data:image/...;base64,...")
    if len(text) * 3 // 4 > limits.max_bytes + 2:  # of padding
        raise BadImage("image_too_many_bytes", f"{len(text)} characters of base64, limit {limits.max_bytes} bytes")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise BadImage("image_bad_data_uri", str(error)) from None


def sha256(content: bytes) -> str:
    """The key of an image in the run's store."""
    return hashlib.sha256(content).hexdigest()
