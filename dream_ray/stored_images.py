"""The encoded bytes of the images that rows point to.

Contract: the one place where a row's image uri becomes bytes for a chat model. Whatever goes wrong (no file, too large,
other pixels than at ingest) raises `BadImage` with a reason for the errors table. Decoding is the reader's business.
"""

from collections.abc import Sequence

from dream_ray import files
from dream_ray.config import ImageConfig
from dream_ray.images import BadImage, sha256
from dream_ray.records import Image


def read_image(uri: str, limits: ImageConfig) -> bytes:
    """The bytes of one image. Raises BadImage "image_missing", "image_too_many_bytes" or "image_unreadable"."""
    try:
        return files.read_bytes(uri, limits.max_bytes)
    except FileNotFoundError:
        raise BadImage("image_missing", uri) from None
    except ValueError as error:
        raise BadImage("image_too_many_bytes", str(error)) from None
    except OSError as error:
        raise BadImage("image_unreadable", f"{uri}: {error}") from None


def read_images(images: Sequence[Image], limits: ImageConfig) -> list[bytes]:
    """The bytes of a prompt's images in order. Raises BadImage, "image_changed" where the sha256 is not the row's."""
    contents = []
    for image in images:
        content = read_image(image.uri, limits)
        if sha256(content) != image.sha256:
            raise BadImage("image_changed", f"{image.uri} no longer holds the bytes with sha256 {image.sha256}")
        contents.append(content)
    return contents
