"""Objects in GCS (gs://): read, write, list and remove, each request counted, checked and retried.

Only the few requests that the project needs; `quickdraw_dist.base.storage` is the interface.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from crc32c import crc32c

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.gcs.request import RequestError, Retries, Timeouts
from quickdraw_dist.base.telemetry import metrics

if TYPE_CHECKING:
    from quickdraw_dist.base.gcs.http import Client

T = TypeVar("T")


class Whole(NamedTuple):
    """A whole object as read."""

    data: bytes
    crc32c: int
    generation: int


@dataclass(frozen=True)
class ObjectStore:
    """The requests to GCS.

    Every method raises FileNotFoundError where the object or bucket does not exist, DeniedError
    where the account lacks the permission, and StorageError where the last try failed.
    """

    retries: Retries
    timeouts: Timeouts

    def read(self, url: str) -> Whole:
        """Return a whole object, checked against the checksum that the store keeps."""

        def get(client: Client) -> Whole:
            headers, data = client.call("GET", client.url(url))
            received, stored = crc32c(data), stored_crc32c(headers)
            if stored is not None and stored != received:
                raise RequestError(
                    "checksum",
                    f"received {len(data):,} bytes with crc32c {received:08x}, the store has "
                    f"{stored:08x}",
                )
            return Whole(bytes(data), received, int(headers.get("X-Goog-Generation", 0)))

        whole = self._try("read", url, get)
        metrics.STORE_BYTES.labels("read").inc(len(whole.data))
        return whole

    def read_range(self, url: str, start: int, length: int) -> bytes:
        """Return `length` bytes of an object from `start` on; fewer only where the object ends."""

        def get(client: Client) -> bytes:
            wanted = {"Range": f"bytes={start}-{start + length - 1}"}
            try:
                headers, data = client.call("GET", client.url(url), headers=wanted)
            except RequestError as failure:
                if failure.kind == "416":  # beyond the end, where a file returns nothing
                    return b""
                raise
            header = headers.get("Content-Range", "no Content-Range")
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", header)
            expected = min(length, int(match[2]) - start) if match else length
            if len(data) != expected or (match and int(match[1]) != start):
                raise RequestError(
                    "short",
                    f"received {len(data):,} of {expected:,} bytes from {start:,} on ({header})",
                )
            return bytes(data)

        if not length:
            return b""
        data = self._try("read_range", url, get)
        metrics.STORE_BYTES.labels("read_range").inc(len(data))
        return data

    def stat(self, url: str) -> dict[str, Any]:
        """Return an object's metadata as in the JSON API: size, crc32c, md5Hash and more."""
        # Not gcsfs's `info`, which also lists the bucket each time: ten times the price.
        bucket, name = _split(url)
        ask = ("GET", "b/{}/o/{}", bucket, name)
        return dict(self._try("stat", url, lambda client: client.call(*ask, json_out=True)))

    def listing(self, folder: str) -> tuple[dict[str, int], list[str]]:
        """Return the names of the objects directly below a folder with their bytes, and the names
        of the folders there."""
        _, name = _split(folder)
        prefix = f"{name.rstrip('/')}/" if name else ""
        objects: dict[str, int] = {}
        folders: list[str] = []
        for page in self._pages(folder, prefix, "/"):
            objects |= {item["name"]: int(item["size"]) for item in page.get("items", ())}
            folders += page.get("prefixes", ())
        if prefix and not objects and not folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", folder)
        cut = len(prefix)
        sizes = {name[cut:]: size for name, size in objects.items() if name != prefix}
        return sizes, [name[cut:-1] for name in folders]

    def write(self, url: str, data: bytes, generation: int | None = None) -> int:
        """Create or replace an object and return its new generation; if `generation` is given,
        replace this one only (0: create only).

        A write whose answer was lost is sent again, which does no harm; a conditional one may then
        find the generation that its own first try made.

        Raises:
            ChangedError: the object has another generation.
        """
        bucket, name = _split(url)
        # The store checks this checksum before the object exists.
        checksum = base64.b64encode(crc32c(data).to_bytes(4)).decode()
        boundary = uuid.uuid4().hex
        head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            f"{json.dumps({'crc32c': checksum})}\r\n"
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        )
        ask: dict[str, Any] = {
            "uploadType": "multipart",
            "name": name,
            "ifGenerationMatch": generation,
            "headers": {"Content-Type": f'multipart/related; boundary="{boundary}"'},
            "data": b"".join((head.encode(), data, f"\r\n--{boundary}--\r\n".encode())),
        }

        def post(client: Client) -> int:
            try:
                answer = client.call("POST", client.upload_url(bucket), json_out=True, **ask)
            except RequestError as failure:
                damaged = re.search("crc32c|checksum", str(failure), re.IGNORECASE)
                if failure.kind != "400" or not damaged:
                    raise
                raise RequestError("checksum", f"damaged on the way: {failure}") from failure
            return int(answer["generation"])

        written = self._try("write", url, post, conditional=generation is not None)
        metrics.STORE_BYTES.labels("write").inc(len(data))
        return written

    def remove(self, url: str, generation: int | None = None) -> None:
        """Remove an object, or only this generation of it (ChangedError if it has another)."""
        ask = ("DELETE", "b/{}/o/{}", *_split(url))

        def delete(client: Client) -> None:
            client.call(*ask, ifGenerationMatch=generation)

        self._try("remove", url, delete, conditional=generation is not None)

    def remove_folder(self, url: str) -> None:
        """Remove all objects below a folder; one that is already removed is no error."""
        bucket, folder = _split(url)
        names = [
            item["name"]
            for page in self._pages(url, f"{folder.rstrip('/')}/", None)
            for item in page.get("items", ())
        ]
        for name in names:
            try:
                self.remove(f"gs://{bucket}/{name}")
            except FileNotFoundError:
                continue  # removed by another process, or by a try whose answer was lost

    def _pages(self, folder: str, prefix: str, delimiter: str | None) -> Iterator[dict[str, Any]]:
        """Yield the pages of a listing, each retried alone: a long listing never restarts."""
        bucket, _ = _split(folder)
        ask: dict[str, Any] = {"prefix": prefix, "delimiter": delimiter, "json_out": True}

        def ask_for_page(client: Client) -> dict[str, Any]:
            return dict(client.call("GET", "b/{}/o", bucket, **ask))

        while True:
            page = self._try("list", folder, ask_for_page)
            yield page
            if not page.get("nextPageToken"):
                return
            ask["pageToken"] = page["nextPageToken"]

    def _try(
        self, operation: str, url: str, call: Callable[[Client], T], conditional: bool = False
    ) -> T:
        def attempt() -> T:
            return call(_client(url, self.timeouts))

        return self.retries.run(operation, url, attempt, conditional)


def stored_crc32c(headers: Any) -> int | None:
    """Return the checksum that the headers of a whole object carry, None where they have none."""
    if "Content-Encoding" in headers:
        return None  # of the stored bytes, which the client has decompressed
    for line in headers.getall("X-Goog-Hash", ()):  # GCS sends one line per kind of checksum
        for field in line.split(","):
            kind, _, value = field.strip().partition("=")
            if kind == "crc32c":
                return int.from_bytes(base64.b64decode(value), "big")
    return None


def _client(url: str, timeouts: Timeouts) -> Client:
    from quickdraw_dist.base.gcs.http import connect  # half a second of imports

    if not url.startswith(("gs://", "gcs://")):
        raise RefusedError(url, None, "unknown kind of address", "Give a path or a gs:// address")
    bucket, _ = _split(url)
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", bucket):  # a placeholder's
        raise RefusedError(
            url,
            None,
            f"no bucket is called {bucket!r} (lower-case letters, digits, '-', '_', '.')",
            "Give the name of your bucket",
        )
    return connect(os.environ.get("STORAGE_EMULATOR_HOST"), timeouts)


def _split(url: str) -> tuple[str, str]:
    """Bucket and object name."""
    bucket, _, name = url.partition("://")[2].partition("/")
    return bucket, name
