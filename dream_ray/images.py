"""Image bytes to pixels, under limits.

Contract: the only place that decodes images. Bytes are judged by content, not by name; what is too large, truncated,
animated or no image raises `BadImage` with a reason for the errors table. Pixels come out as 8-bit RGB, upright,
transparency on white. `storable` gives bytes that any other decoder sees the same pixels in, so that an engine or an
endpoint that opens them itself judges what the student was shown.
"""

import base64
import binascii
import hashlib
import io
import struct
import warnings
from functools import cache

import numpy
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from dream_ray.config import ImageConfig

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What Pillow is allowed to try: formats that prompts come in, none with external references."""

DATA_URI = "data:"
"""How a uri begins that is the image itself."""
KEPT = ("PNG", "JPEG", "MPO", "WEBP")
"""Formats that are stored as they came where their pixels are plain: 8-bit RGB or grey, upright, opaque. MPO is what
Pillow calls a phone's JPEG with a second picture behind the first; every decoder shows the first."""

JPEG_QUALITY = 95
"""Of a JPEG that has to be written again (CMYK, or turned by its EXIF tag): as PNG a photo would grow tenfold."""

_PNG_DEPTH = 24
"""Where a PNG says how many bits a channel has. Pillow calls 16-bit colours "RGB" and keeps the upper half of each."""

PLACEHOLDER_SIZE = 256
"""Width and height in pixels of the grey picture that stands in for a missing one."""

# Our own limit is checked before a pixel is decoded, and may be set higher than Pillow's.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class BadImage(ValueError):
    """Bytes that cannot be used as an image; `reason` is a short word for counting."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def decode(content: bytes, limits: ImageConfig) -> Image.Image:
    """Upright RGB pixels of an encoded image. Raises BadImage."""
    return _decode(content, limits)[0]


def storable(content: bytes, limits: ImageConfig) -> tuple[bytes, Image.Image]:
    """An image's bytes in the form that is stored, and its pixels. Raises BadImage.

    Plain PNG, JPEG and WebP stay as they are. Of the rest, JPEGs are written again as JPEG, all others as PNG.
    """
    pixels, form, plain = _decode(content, limits)
    if plain:
        return content, pixels
    buffer = io.BytesIO()
    if form in ("JPEG", "MPO"):
        pixels.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        pixels.save(buffer, format="PNG")
    stored = buffer.getvalue()
    if len(stored) > limits.max_bytes:
        raise BadImage("image_too_many_bytes", f"{len(stored)} bytes as plain RGB, limit {limits.max_bytes}")
    return stored, decode(stored, limits)


@cache
def placeholder() -> bytes:
    """A plain grey PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (PLACEHOLDER_SIZE, PLACEHOLDER_SIZE), (128, 128, 128)).save(buffer, format="PNG")
    return buffer.getvalue()


def _decode(content: bytes, limits: ImageConfig) -> tuple[Image.Image, str, bool]:
    """Pixels, the format found, and whether any decoder would see the same pixels."""
    if not content:
        raise BadImage("image_empty", "zero bytes")
    if len(content) > limits.max_bytes:
        raise BadImage("image_too_many_bytes", f"{len(content)} bytes, limit {limits.max_bytes}")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        form = str(image.format)
        width, height = image.size
        if width * height > limits.max_pixels:
            raise BadImage("image_too_many_pixels", f"{width}x{height}, limit {limits.max_pixels} pixels")
        if form != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise BadImage("image_animated", "more than one frame; bring the frame that is meant")
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
        plain = form in KEPT and image.mode in ("RGB", "L") and "transparency" not in image.info
        plain = plain and not turned and not (form == "PNG" and content[_PNG_DEPTH] > 8)
        image.load()
        return _rgb(ImageOps.exif_transpose(image) if turned else image), form, plain
    except UnidentifiedImageError:
        raise BadImage("image_unknown_format", f"not one of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise BadImage("image_too_many_pixels", str(error)) from None
    except BadImage:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error) as error:
        # What Pillow's readers raise on bytes that are not what their header says.
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


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB. Pillow would clip 16-bit greys to white and show what lies under full transparency."""
    if image.mode.startswith("I"):
        return Image.fromarray((numpy.asarray(image).astype("uint32") >> 8).astype("uint8")).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def sha256(content: bytes) -> str:
    """The key of an image in the run's store."""
    return hashlib.sha256(content).hexdigest()
