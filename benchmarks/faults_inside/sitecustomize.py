"""What benchmarks/faults.py does to processes from within: every Python process of its runs imports this at its start.

The folder that DREAM_RAY_FAULTS names says what to do:

    tear       the next file of a stage that is written fails half way, in whichever process that is
    clock      holds the seconds by which time.time() is off from now on; what C++ reads stays as it is
    engine     a vLLM engine on a CPU gets a process of its own, as one on a GPU has
    flights    written here: a line each time that rows are handed to a teacher or an engine
"""

import errno
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

CONTROL = os.environ.get("DREAM_RAY_FAULTS", "")


def _path(name: str) -> str:
    return os.path.join(CONTROL, name)


class _Torn:
    """A stream that takes half of what it is given."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __enter__(self) -> "_Torn":
        return self

    def __exit__(self, *arguments: object) -> None:
        self._stream.close()

    def write(self, content: bytes) -> None:
        self._stream.write(content[: len(content) // 2])
        raise OSError(errno.EIO, "Input/output error")


def _tear_writes(files: ModuleType) -> None:
    """In dream_ray.files: local files of stages, one of which fails when told, and a line for each file of in_flight/."""
    resolve, write_atomic = files.resolve, files.write_atomic

    class Tearing(files.pafs.LocalFileSystem):  # type: ignore[name-defined]
        def open_output_stream(self, path: str, *arguments: Any, **named: Any) -> Any:
            stream = super().open_output_stream(path, *arguments, **named)
            if "/stages/" not in path:
                return stream
            try:
                os.rename(_path("tear"), _path("torn"))  # one process gets it
            except FileNotFoundError:
                return stream
            return _Torn(stream)

    def tearing(uri: str) -> tuple[Any, str]:
        filesystem, path = resolve(uri)
        return (Tearing() if isinstance(filesystem, files.pafs.LocalFileSystem) else filesystem), path

    def noting(uri: str, content: bytes) -> None:
        if "/in_flight/" in uri:
            line = [*uri.rsplit("/", 2)[-2:], content.decode()]
            with open(_path("flights"), "a") as stream:
                stream.write("\t".join(line) + "\n")
        write_atomic(uri, content)

    files.resolve, files.write_atomic = tearing, noting  # type: ignore[attr-defined]


def _separate_engine(engine: ModuleType) -> None:
    """In dream_ray.engine.engine, before vLLM is imported."""
    if os.path.exists(_path("engine")):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"


class _Patches(MetaPathFinder):
    """Patches a module once it is imported."""

    def __init__(self, patches: dict[str, Callable[[ModuleType], None]]):
        self._patches = patches

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        patch = self._patches.pop(name, None)
        spec = importlib.util.find_spec(name) if patch else None
        if patch is None or spec is None or spec.loader is None:
            return None
        loader: Loader = spec.loader
        execute = loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            patch(module)

        loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


_now, _now_ns, _clock = time.time, time.time_ns, _path("clock")


def _offset() -> int:
    if not os.path.exists(_clock):
        return 0
    with open(_clock) as stream:
        return int(stream.read())


# Functions of this module and no closures, so that what refers to them can be pickled.
def shifted_time() -> float:
    """In place of time.time."""
    return _now() + _offset()


def shifted_time_ns() -> int:
    """In place of time.time_ns."""
    return _now_ns() + _offset() * 10**9


if CONTROL:
    sys.meta_path.insert(0, _Patches({"dream_ray.files": _tear_writes, "dream_ray.engine.engine": _separate_engine}))
    time.time, time.time_ns = shifted_time, shifted_time_ns
