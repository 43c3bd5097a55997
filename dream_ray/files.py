"""Files on any pyarrow filesystem: a local path, s3://, gs://.

Contract: the only place that turns a uri into a filesystem. `write_atomic` shows a file whole or not at all. Nothing here
knows what the files hold.
"""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pyarrow.fs as pafs


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a uri and the path on it; a relative local path is made absolute.

    Behind the bucket or host a path is what is written there, spaces, "#" and "%" included: names of objects are no urls.
    So no options stand behind a "?"; the environment has them (AWS_ENDPOINT_URL, AWS_REGION).
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    place, _, path = rest.partition("/")
    if scheme == "file":
        return pafs.LocalFileSystem(), os.path.abspath(f"/{path}")
    filesystem, root = filesystem_of(f"{scheme}://{place}")
    return filesystem, "/".join([root.rstrip("/"), path.rstrip("/")]) if path else root


@cache
def filesystem_of(place: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a bucket or host ("s3://bucket") and the path of its root.

    Kept for the life of the process: a client of its own for every file would open, and greet on, a connection for each.
    """
    filesystem, root = pafs.FileSystem.from_uri(place)
    return filesystem, root


def join(uri: str, *parts: str) -> str:
    """A uri below another one."""
    return "/".join([uri.rstrip("/"), *parts])


def is_local(uri: str) -> bool:
    """True where plain file functions reach the uri. Asks nobody."""
    scheme, separator, _ = uri.partition("://")
    return not separator or scheme == "file"


def exists(uri: str) -> bool:
    """True where there is a file or a folder."""
    filesystem, path = resolve(uri)
    return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def is_file(uri: str) -> bool:
    """True where there is a file."""
    filesystem, path = resolve(uri)
    return bool(filesystem.get_file_info(path).type == pafs.FileType.File)


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """The content of a file. Raises FileNotFoundError, and ValueError where it is larger than `limit` bytes."""
    filesystem, path = resolve(uri)
    info = filesystem.get_file_info(path)
    if info.type != pafs.FileType.File:
        raise FileNotFoundError(f"{uri} is not a file.")
    if limit is not None and info.size > limit:
        raise ValueError(f"{uri} has {info.size} bytes, over the limit of {limit}.")
    with filesystem.open_input_stream(path) as stream:
        # With its size: an object store would otherwise be asked for every quarter of a megabyte.
        return bytes(stream.read(info.size))


def read_chunks(uri: str, size: int = 1 << 20) -> Iterator[bytes]:
    """The content of a file, `size` bytes at a time. Raises FileNotFoundError."""
    filesystem, path = resolve(uri)
    with filesystem.open_input_stream(path) as stream:
        while chunk := stream.read(size):
            yield bytes(chunk)


def write_atomic(uri: str, content: bytes) -> None:
    """Write a file under a temporary name and move it to its own, so that no reader sees half of it."""
    filesystem, path = resolve(uri)
    filesystem.create_dir(path.rsplit("/", 1)[0], recursive=True)
    # Unique among threads and machines too: several may write the same file of a shared folder.
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with filesystem.open_output_stream(temporary) as stream:
            stream.write(content)
        filesystem.move(temporary, path)
    except OSError:
        # A full disk must not fill up further with what was not written. What cannot be removed now is swept later.
        with contextlib.suppress(OSError):
            filesystem.delete_file(temporary)
        raise


def is_of_storage(error: BaseException) -> bool:
    """True for an error of a file or its storage; Python counts deadlines and lost connections among the same kind."""
    return isinstance(error, OSError) and not isinstance(error, (ConnectionError, TimeoutError))


def explain(error: OSError) -> str:
    """What a storage that failed means for who runs something, and what to do."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "has no room left" if full else "failed"
    remedy = "Make room there" if full else "Look whether it is reachable and may be read and written"
    return (
        f"The storage {what}: {error}. Files are written whole or not at all, so what was finished by then is kept. {remedy}, "
        "then run the same command again: it goes on from there."
    )


def list_files(uri: str, suffix: str = "") -> list[str]:
    """Paths (as `resolve` gives them) of the files directly in a folder, sorted; empty where the folder is absent."""
    filesystem, path = resolve(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.path for info in infos if info.type == pafs.FileType.File and info.path.endswith(suffix))


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly in a folder, sorted; empty where it is absent."""
    filesystem, path = resolve(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


def list_tree(uri: str) -> list[str]:
    """Paths (as `resolve` gives them) of all files below a folder, sorted; empty where the folder is absent."""
    filesystem, path = resolve(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
    return sorted(info.path for info in infos if info.type == pafs.FileType.File)


def delete_file(uri: str) -> None:
    """Remove a file; no error where it is absent."""
    filesystem, path = resolve(uri)
    with contextlib.suppress(FileNotFoundError):
        if filesystem.get_file_info(path).type == pafs.FileType.File:
            filesystem.delete_file(path)


def delete_folder(uri: str) -> None:
    """Remove a folder and all below it; no error where it is absent."""
    filesystem, path = resolve(uri)
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        filesystem.delete_dir(path)


def as_path(uri: str) -> Path:
    """A local uri as a Path. Raises ValueError for a remote one."""
    if not is_local(uri):
        raise ValueError(f"{uri} is not on this machine's file system.")
    return Path(resolve(uri)[1])
