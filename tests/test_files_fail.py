"""A storage that fails while a file is written: nothing half is seen, nothing is left, and the error says what to do."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import ray.exceptions

from dream_ray import files


class FailsHalfWay(pafs.LocalFileSystem):
    """A local filesystem whose streams write half of what they are given, then raise; `move` may fail as well."""

    number = errno.ENOSPC
    at = "write"

    def open_output_stream(self, path: str, *arguments: Any, **named: Any) -> Any:
        stream = super().open_output_stream(path, *arguments, **named)
        return stream if self.at != "write" else _Torn(stream, self.number)

    def move(self, source: str, target: str) -> None:
        if self.at == "move":
            raise OSError(self.number, "the storage went away")
        super().move(source, target)


class _Torn:
    def __init__(self, stream: Any, number: int):
        self._stream, self._number = stream, number

    def __enter__(self) -> "_Torn":
        return self

    def __exit__(self, *arguments: object) -> None:
        self._stream.close()

    def write(self, content: bytes) -> None:
        self._stream.write(content[: len(content) // 2])
        raise OSError(self._number, "No space left on device")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Makes every file that is written from now on fail, at its content or at its move."""

    def fail(at: str, number: int) -> None:
        monkeypatch.setattr(FailsHalfWay, "at", at)
        monkeypatch.setattr(FailsHalfWay, "number", number)
        monkeypatch.setattr(files.pafs, "LocalFileSystem", FailsHalfWay)

    return fail


@pytest.mark.parametrize("at", ["write", "move"])
def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, failing: Callable[[str, int], None], at: str
) -> None:
    uri = str(tmp_path / "folder" / "file.json")
    files.write_atomic(uri, b"earlier")
    failing(at, errno.ENOSPC)
    with pytest.raises(OSError, match=r"No space left|went away"):
        files.write_atomic(uri, b"this is longer than there is room for")
    assert {path.name: path.read_bytes() for path in Path(uri).parent.iterdir()} == {"file.json": b"earlier"}


def test_a_full_disk_and_a_refused_one_are_told_apart() -> None:
    full = files.explain(OSError(errno.ENOSPC, "No space left on device", "/run/data"))
    assert all(words in full for words in ("no room left", "/run/data", "same command again"))
    refused = files.explain(PermissionError(errno.EACCES, "Permission denied", "/run/data"))
    assert "Permission denied" in refused
    assert "no room" not in refused


def test_deadlines_and_connections_are_no_storage_errors() -> None:
    assert files.is_of_storage(FileNotFoundError())
    assert not files.is_of_storage(ray.exceptions.GetTimeoutError())
    assert not files.is_of_storage(ConnectionResetError())
    assert not files.is_of_storage(ValueError())
