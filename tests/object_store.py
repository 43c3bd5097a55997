"""A small object store that speaks S3 over HTTP, so that pyarrow's own S3 client is what the tests go through.

Contract: objects are bytes by "bucket/key" in memory; folders do not exist unless an object says so, names may hold any
character, and a listing comes `PAGE` names at a time, as a real store's comes a thousand at a time. Signatures are not
checked; what `forbidden` names is refused. `requests` counts what was asked for, `connections` the sockets that were opened.
"""

import hashlib
import io
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest

from dream_ray import files

PAGE = 3
"""Most names of one page of a listing."""


class ObjectStore(ThreadingHTTPServer):
    """The server; `objects` may be read and written while it runs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.forbidden: set[str] = set()
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.requests: Counter[str] = Counter()
        self.connections = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def download(self, place: str, folder: Path) -> None:
        """Make a folder hold what lies below "bucket/prefix"; other files in it go, and unchanged ones are left alone."""
        wanted = {folder / name.removeprefix(f"{place}/"): body for name, body in list(self.objects.items())
                  if name.startswith(f"{place}/") and not name.endswith("/")}  # fmt: skip
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            if path not in wanted:
                path.unlink()
        for path, content in wanted.items():
            if not path.is_file() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def upload(self, folder: Path, place: str) -> None:
        """All files of a folder, below "bucket/prefix"."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.objects[f"{place}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()


@contextmanager
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A running store that `s3://` means as long as it is there, in this process and in those that it starts."""
    with ObjectStore() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        settings = {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": "a-user",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        files.filesystem_of.cache_clear()
        yield server
        files.filesystem_of.cache_clear()
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: the client would wait 40 ms between two
    server: ObjectStore

    def setup(self) -> None:
        with self.server.lock:
            self.server.connections += 1
        super().setup()

    def handle_expect_100(self) -> bool:
        answer = super().handle_expect_100()
        self.wfile.flush()
        return answer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _target(self) -> tuple[str, str, dict[str, str]]:
        """Bucket, key and query of the request."""
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        with self.server.lock:
            self.server.requests[f"{self.command} {'object' if key else 'bucket'}"] += 1
        return bucket, key, query

    def _reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _xml(self, name: str, content: str, status: int = 200) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?><{name}>{content}</{name}>'
        self._reply(status, text.encode(), Content_Type="application/xml")

    def do_HEAD(self) -> None:
        bucket, key, _ = self._target()
        content = self.server.objects.get(f"{bucket}/{key}") if key else b""
        if f"{bucket}/{key}" in self.server.forbidden:
            self._reply(403)
        elif content is None:
            self._reply(404)
        else:
            self._reply(200, content, Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT", ETag=_tag(content))

    def do_GET(self) -> None:
        bucket, key, query = self._target()
        if not key:
            return self._list(bucket, query)
        content = self.server.objects.get(f"{bucket}/{key}")
        if content is None:
            return self._xml("Error", "<Code>NoSuchKey</Code>", 404)
        headers = {"Last_Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "ETag": _tag(content)}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self._reply(200, content, **headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
        return self._reply(206, content[first : last + 1], **headers)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, most = query.get("continuation-token", ""), min(PAGE, int(query.get("max-keys", PAGE)))
        names: dict[str, bytes | None] = {}
        for place in sorted(self.server.objects):
            key = place.removeprefix(f"{bucket}/")
            if place.startswith(f"{bucket}/{prefix}"):
                head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
                names[prefix + head + delimiter if found else key] = None if found else self.server.objects[place]
        waiting = [name for name in names if name > start]
        content = ""
        for name in waiting[:most]:
            body = names[name]
            if body is None:
                content += f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            else:
                content += (
                    f"<Contents><Key>{escape(name)}</Key><Size>{len(body)}</Size><ETag>{escape(_tag(body))}</ETag>"
                    "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                )
        if len(waiting) > most:
            content += f"<NextContinuationToken>{escape(waiting[most - 1])}</NextContinuationToken>"
        more = str(len(waiting) > most).lower()
        count = min(len(waiting), most)
        self._xml("ListBucketResult", f"<KeyCount>{count}</KeyCount><IsTruncated>{more}</IsTruncated>{content}")

    def do_PUT(self) -> None:
        bucket, key, query = self._target()
        place, content = f"{bucket}/{key}", self._body()
        if not key:
            return self._reply(200)
        if "uploadId" in query:
            self.server.uploads[query["uploadId"]][int(query["partNumber"])] = content
            return self._reply(200, ETag=_tag(content))
        source = self.headers.get("x-amz-copy-source")
        if source is not None:
            self.server.objects[place] = self.server.objects[unquote(source).lstrip("/")]
            return self._xml("CopyObjectResult", f"<ETag>{escape(_tag(self.server.objects[place]))}</ETag>")
        self.server.objects[place] = content
        return self._reply(200, ETag=_tag(content))

    def do_POST(self) -> None:
        bucket, key, query = self._target()
        place, content = f"{bucket}/{key}", self._body()
        if "uploads" in query:
            number = f"upload-{self.server.requests.total()}"
            self.server.uploads[number] = {}
            return self._xml("InitiateMultipartUploadResult", f"<UploadId>{number}</UploadId>")
        if "uploadId" in query:
            parts = self.server.uploads.pop(query["uploadId"])
            self.server.objects[place] = b"".join(parts[number] for number in sorted(parts))
            return self._xml(
                "CompleteMultipartUploadResult", f"<ETag>{escape(_tag(self.server.objects[place]))}</ETag>"
            )
        for name in ElementTree.fromstring(content).iter():
            if name.tag.endswith("Key"):
                self.server.objects.pop(f"{bucket}/{name.text}", None)
        return self._xml("DeleteResult", "")

    def do_DELETE(self) -> None:
        bucket, key, query = self._target()
        if "uploadId" not in query:
            self.server.objects.pop(f"{bucket}/{key}", None)
        self._reply(204)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        else:
            content = b"".join(_chunks(self.rfile))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            content = b"".join(_chunks(io.BytesIO(content)))
        return content


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    """The chunks of HTTP and of S3, which look alike: the size in hex, the bytes; size 0 and trailers at the end."""
    while size := int(stream.readline().split(b";")[0], 16):
        yield stream.read(size)
        stream.readline()
    while stream.readline().strip():
        pass


def _tag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'
