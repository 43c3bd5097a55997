"""Text in pictures, read by RapidOCR's PP-OCRv6 models on the CPU.

Contract: `TextReader.read` takes the encoded bytes of an image and returns its lines, top to bottom; it raises `BadImage`
for bytes that are no usable image. The models ship inside the rapidocr wheel and are named by path, so nothing is ever
downloaded; they load at the first image. Results are kept by the image's sha256 for as long as the reader lives. It
reads what is written, and sees nothing of what a picture shows.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from dream_ray.config import ImageConfig
from dream_ray.images import decode, sha256

DETECTION_SIDE = 480
"""Longest side, in pixels, at which text is looked for; larger pictures are shrunk for that step only. Smaller ones are
not blown up, as RapidOCR would by default: that costs three times the time on a 256-pixel picture and reads no better."""

THREADS = 2
"""Threads of the ONNX runtime for one image; more pictures at once are the business of more actors."""

_MODELS = {"Det": "PP-OCRv6_det_small.onnx", "Rec": "PP-OCRv6_rec_small.onnx"}


class TextReader:
    """A lazily loaded OCR engine with a cache. Safe to call from several threads, which take turns."""

    def __init__(self, limits: ImageConfig):
        self._limits = limits
        self._engine: Any = None
        self._lock = threading.Lock()
        self._lines: dict[str, tuple[str, ...]] = {}

    @property
    def is_loaded(self) -> bool:
        """True once an image has made the models load."""
        return self._engine is not None

    def read(self, content: bytes) -> tuple[str, ...]:
        """The lines of text in an encoded image, empty where there is none. Raises BadImage."""
        key = sha256(content)
        with self._lock:
            if key not in self._lines:
                pixels = np.asarray(decode(content, self._limits))
                if self._engine is None:
                    self._engine = _load()
                # RapidOCR takes arrays in OpenCV's order of channels.
                found = self._engine(np.ascontiguousarray(pixels[:, :, ::-1]))
                self._lines[key] = tuple(line.strip() for line in found.txts or () if line.strip())
            return self._lines[key]


def _load() -> Any:
    """The engine with its models named by path. Raises RuntimeError where the package or its models are missing."""
    try:
        import rapidocr
    except ImportError as error:
        raise RuntimeError(
            f"The rules backend met an image but cannot read it: {error}. Install the offline teacher's parts with "
            "`pip install 'dream-ray[local]'`, or name another chat backend for teacher and judge."
        ) from error
    folder = Path(rapidocr.__file__).parent / "models"
    missing = [name for name in _MODELS.values() if not (folder / name).is_file()]
    if missing:
        raise RuntimeError(
            f"{folder} lacks {', '.join(missing)}: this rapidocr is not the release that dream_ray was written for, and "
            "would fetch models from the network. Install the pinned one with `pip install 'dream-ray[local]'`."
        )
    params: dict[str, Any] = {f"{part}.model_path": str(folder / name) for part, name in _MODELS.items()}
    params |= {
        "Global.log_level": "error",
        # The classifier of upside-down lines costs time and prompts' pictures are upright.
        "Global.use_cls": False,
        "Det.limit_type": "max",
        "Det.limit_side_len": DETECTION_SIDE,
        "EngineConfig.onnxruntime.intra_op_num_threads": THREADS,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    }
    return rapidocr.RapidOCR(params=params)
