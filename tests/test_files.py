"""Files on a disk and on an object store: the same calls, the same results."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dream_ray import files
from tests.object_store import PAGE, ObjectStore, object_store

NAMES = ("a photo.png", "half #1.png", "100%25.png", "what?.png", "ümläut.png", "plain+plus.png")
"""Names that files have and that no url could hold as they are."""


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with object_store(monkeypatch) as running:
        yield running


@pytest.fixture(params=["disk", "file uri", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder's uri."""
    if request.param != "object store":
        return str(tmp_path) if request.param == "disk" else f"file://{tmp_path}"
    request.getfixturevalue("store")
    return "s3://bucket/run"


@pytest.mark.parametrize("name", NAMES)
def test_what_was_written_is_read_back_whatever_it_is_called(folder: str, name: str) -> None:
    uri = files.join(folder, "deep", name)
    assert not files.exists(uri)
    files.write_atomic(uri, b"first")
    files.write_atomic(uri, b"content")
    assert files.read_bytes(uri) == b"content"
    assert b"".join(files.read_chunks(uri, size=3)) == b"content"
    assert [path.rsplit("/", 1)[-1] for path in files.list_files(files.join(folder, "deep"))] == [name]
    assert (files.is_file(uri), files.is_file(files.join(folder, "deep"))) == (True, False)
    files.delete_file(uri)
    files.delete_file(uri)
    assert not files.exists(uri)


def test_a_folder_is_listed_page_by_page(folder: str) -> None:
    many = [f"{number:02d}.parquet" for number in range(3 * PAGE + 1)]
    for name in (*many, "notes.txt", "below/one.parquet"):
        files.write_atomic(files.join(folder, name), b"x")
    assert [path.rsplit("/", 1)[-1] for path in files.list_files(folder, ".parquet")] == many
    assert files.list_folders(folder) == ["below"]
    assert len(files.list_tree(folder)) == len(many) + 2
    assert files.list_files(files.join(folder, "nowhere")) == []
    files.delete_folder(folder)
    assert files.list_tree(folder) == []


def test_a_limit_is_kept_and_what_is_absent_is_said_to_be(folder: str) -> None:
    uri = files.join(folder, "a.bin")
    with pytest.raises(FileNotFoundError):
        files.read_bytes(uri)
    files.write_atomic(uri, b"12345")
    assert files.read_bytes(uri, limit=5) == b"12345"
    with pytest.raises(ValueError, match="5 bytes, over the limit of 4"):
        files.read_bytes(uri, limit=4)
    with pytest.raises(FileNotFoundError):
        files.read_bytes(folder)


def test_a_file_is_one_question_and_all_files_share_a_connection(store: ObjectStore) -> None:
    for number in range(20):
        store.objects[f"bucket/{number}"] = bytes(3_000_000)
    assert all(len(files.read_bytes(f"s3://bucket/{number}")) == 3_000_000 for number in range(20))
    assert store.requests["GET object"] == 20
    assert store.connections == 1


def test_what_may_not_be_read_is_neither_absent_nor_empty(store: ObjectStore) -> None:
    store.objects["bucket/a"] = b"x"
    store.forbidden.add("bucket/a")
    with pytest.raises(OSError, match="ACCESS_DENIED") as error:
        files.read_bytes("s3://bucket/a")
    assert not isinstance(error.value, FileNotFoundError)


def test_a_remote_uri_is_known_without_asking_anybody() -> None:
    assert not files.is_local("s3://no-such-bucket/a")
    assert files.is_local("file:///a")
    assert files.is_local("a/b")
