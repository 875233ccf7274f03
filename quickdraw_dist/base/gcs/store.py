"""gs:// in the few requests that are needed: each one counted, checked, and, while its trouble
looks passing, repeated with backoff a bounded number of times."""

from __future__ import annotations

import base64
import errno
import json
import os
import random
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from crc32c import crc32c

from quickdraw_dist.base.errors import ChangedError, DeniedError, RefusedError, StorageError
from quickdraw_dist.base.telemetry import metrics as telemetry

if TYPE_CHECKING:
    from quickdraw_dist.base.gcs.http import Client

T = TypeVar("T")


class RequestError(Exception):
    """One try that went wrong."""

    def __init__(self, kind: str, text: str, passing: bool = True, denied: bool = False) -> None:
        """`kind` is what metrics count it as: an HTTP status, connection, stall, short, checksum
        or credentials. `passing`: the same request may succeed later."""
        super().__init__(f"{kind}: {text}")
        self.kind, self.passing, self.denied = kind, passing, denied


class Pace(NamedTuple):
    """How slow a store may be before a try is given up."""

    connect_seconds: float
    stall_seconds: float
    slowest_bytes_a_second: int

    def seconds_for(self, size: int) -> float:
        """Longest that this many bytes may take."""
        return self.stall_seconds + size / self.slowest_bytes_a_second


class Whole(NamedTuple):
    """An object that was read."""

    data: bytes
    crc32c: int
    generation: int


@dataclass(frozen=True)
class ObjectStore:
    """What one can do with gs://. Every method raises StorageError when the tries are used up or
    the trouble will not pass, and FileNotFoundError where there is no such object or bucket."""

    attempts: int
    backoff_seconds: float
    pace: Pace

    def read(self, url: str) -> Whole:
        """A whole object, compared with the checksum that the store keeps of it."""

        def get(client: Client) -> Whole:
            headers, data = client.call("GET", client.url(url))
            came, kept = crc32c(data), _kept_crc32c(headers)
            if kept is not None and kept != came:
                raise RequestError(
                    "checksum",
                    f"{len(data):,} bytes with crc32c {came:08x} came, the store's own is "
                    f"{kept:08x}",
                )
            return Whole(bytes(data), came, int(headers.get("X-Goog-Generation", 0)))

        whole = self._try("read", url, get)
        telemetry.STORE_BYTES.labels("read").inc(len(whole.data))
        return whole

    def read_range(self, url: str, start: int, length: int) -> bytes:
        """Bytes of an object from `start` on; fewer than `length` only where it ends."""

        def get(client: Client) -> bytes:
            wanted = {"Range": f"bytes={start}-{start + length - 1}"}
            try:
                headers, data = client.call("GET", client.url(url), headers=wanted)
            except RequestError as fault:
                if fault.kind == "416":  # where a file would give nothing: beyond its end
                    return b""
                raise
            said = headers.get("Content-Range", "no Content-Range")
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", said)
            due = min(length, int(match[2]) - start) if match else length
            if len(data) != due or (match and int(match[1]) != start):
                raise RequestError(
                    "short", f"{len(data):,} of {due:,} bytes from {start:,} came ({said})"
                )
            return bytes(data)

        return self._try("read_range", url, get) if length else b""

    def stat(self, url: str) -> dict[str, Any]:
        """What the store knows of an object: size, crc32c, md5Hash and more, as in its JSON."""
        # Not gcsfs's `info`: that lists the bucket each time too, which costs ten times as much.
        bucket, name = _split(url)
        ask = ("GET", "b/{}/o/{}", bucket, name)
        return dict(self._try("stat", url, lambda client: client.call(*ask, json_out=True)))

    def listing(self, folder: str) -> tuple[dict[str, int], list[str]]:
        """Objects directly below a folder with their bytes, and folders, both by name."""
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
        """Create or replace an object, or only one of this generation (0: only create); returns
        the new generation. Sent again when the answer was lost: that does no harm, but where a
        generation is asked for, it may then be found changed by the try before.

        Raises:
            ChangedError: it is of another generation.
        """
        bucket, name = _split(url)
        # The store compares the checksum before the object exists: a damaged one never does.
        own = base64.b64encode(crc32c(data).to_bytes(4)).decode()
        mark = uuid.uuid4().hex
        head = (
            f"--{mark}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            f"{json.dumps({'crc32c': own})}\r\n"
            f"--{mark}\r\nContent-Type: application/octet-stream\r\n\r\n"
        )
        body = b"".join((head.encode(), data, f"\r\n--{mark}--\r\n".encode()))
        headers = {"Content-Type": f'multipart/related; boundary="{mark}"'}

        def post(client: Client) -> int:
            ask: dict[str, Any] = {
                "uploadType": "multipart",
                "name": name,
                "ifGenerationMatch": generation,
            }
            ask |= {"headers": headers, "data": body}
            try:
                answer = client.call("POST", client.upload_url(bucket), json_out=True, **ask)
            except RequestError as fault:
                damaged = re.search("crc32c|checksum", str(fault), re.IGNORECASE)
                if fault.kind != "400" or not damaged:
                    raise
                raise RequestError("checksum", f"what was sent came damaged: {fault}") from fault
            return int(answer["generation"])

        written = self._try("write", url, post, conditional=generation is not None)
        telemetry.STORE_BYTES.labels("write").inc(len(data))
        return written

    def remove(self, url: str, generation: int | None = None) -> None:
        """Remove an object, or only one of this generation; ChangedError if it is of another."""
        ask = ("DELETE", "b/{}/o/{}", *_split(url))

        def delete(client: Client) -> None:
            client.call(*ask, ifGenerationMatch=generation)

        self._try("remove", url, delete, conditional=generation is not None)

    def remove_folder(self, url: str) -> None:
        """Remove all objects below a folder; what is gone already is no error."""
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
                continue  # by another one, or by a try whose answer was lost

    def _pages(self, folder: str, prefix: str, delimiter: str | None) -> Iterator[dict[str, Any]]:
        """A listing, page by page, each a request of its own: a long one must not start anew."""
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
        """One request, repeated while the trouble looks passing. One that is `conditional` may be
        answered with no, which is no error of the store."""
        for attempt in range(1, self.attempts + 1):
            telemetry.STORE_REQUESTS.labels(operation).inc()
            try:
                answer = call(_client(url, self.pace))
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, "no such object or bucket", url) from None
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                fault = RequestError("short", f"an answer that is no JSON: {error}")
            except RequestError as error:
                if conditional and error.kind == "412":
                    raise ChangedError(f"{url}: {operation}: {error}") from error
                fault = error
            else:
                if isinstance(answer, bytes):
                    telemetry.STORE_BYTES.labels(operation).inc(len(answer))
                return answer
            if attempt == self.attempts or not fault.passing:
                telemetry.STORE_ERRORS.labels(fault.kind).inc()
                tries = f"{attempt} {'try' if attempt == 1 else 'tries'}"
                kind = DeniedError if fault.denied else StorageError
                raise kind(f"{url}: {operation} failed after {tries}: {fault}") from fault
            telemetry.STORE_RETRIES.labels(fault.kind).inc()
            if attempt > 1:  # one hiccup is not worth a line
                again = f"try {attempt + 1} of {self.attempts}"
                print(f"store: {url}: {operation}: {fault}; {again}", file=sys.stderr)
            # Jitter keeps the ranks of a big job from coming back all at once.
            spread = 0.5 + random.random()  # noqa: S311
            time.sleep(self.backoff_seconds * 2 ** (attempt - 1) * spread)
        raise AssertionError("the loop returns or raises")


def _client(url: str, pace: Pace) -> Client:
    from quickdraw_dist.base.gcs.http import connect

    if not url.startswith(("gs://", "gcs://")):
        raise RefusedError(f"{url}: a path or an address that begins with gs:// is right")
    bucket, _ = _split(url)
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", bucket):  # that of a placeholder
        raise RefusedError(
            f"{url}: no bucket is called {bucket!r} (lower-case letters, digits, '-', '_', '.'); "
            "the name of yours is right"
        )
    return connect(os.environ.get("STORAGE_EMULATOR_HOST"), pace)


def _split(url: str) -> tuple[str, str]:
    """Bucket and name."""
    bucket, _, name = url.partition("://")[2].partition("/")
    return bucket, name


def _kept_crc32c(headers: Any) -> int | None:
    """The checksum that comes with a whole object, None where the store keeps none."""
    if "Content-Encoding" in headers:
        return None  # it is that of the stored bytes, before the client unpacked them
    for line in headers.getall("X-Goog-Hash", ()):  # GCS sends a line for each kind
        for part in line.split(","):
            kind, _, value = part.strip().partition("=")
            if kind == "crc32c":
                return int.from_bytes(base64.b64decode(value), "big")
    return None
