"""gs:// on this machine for tests: a local server with a bucket, and processes that use it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import fsspec.config

from quickdraw_dist.base import storage
from tests.support.gcs.server import GcsServer, Request, Response


@dataclass
class Store:
    """A local Cloud Storage with an empty bucket `bucket`, and the requests it has received."""

    server: GcsServer
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method (MEDIA for the bytes of an object) and path, still percent-encoded."""
    intercept: Callable[[Request], Response | None] | None = None
    """Sees every request first and may answer it."""

    def media_reads(self, part_of_name: str) -> int:
        """Count the requests for bytes of objects with this text in their name."""
        return sum(part_of_name in path for method, path in self.requests if method == "MEDIA")

    def upload(self, folder: str | Path, url: str) -> str:
        """Copy a folder of files below an address; returns the address."""
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                storage.publish(storage.join(url, name), path.read_bytes())
        return url


def use_store(url: str) -> None:
    """Point this process's gs:// at a local server, without anybody's real credentials."""
    os.environ["STORAGE_EMULATOR_HOST"] = url
    os.environ["no_proxy"] = "127.0.0.1"
    fsspec.config.conf["gs"] = {"token": "anon"}


@contextmanager
def serve() -> Iterator[Store]:
    """Run a server with the bucket `bucket`; the caller points gs:// at it with `use_store`."""

    def intercept(request: Request) -> Response | None:
        media = request.params.get("alt") == "media"
        store.requests.append(("MEDIA" if media else request.method, request.path))
        return store.intercept(request) if store.intercept is not None else None

    with GcsServer(intercept=intercept) as server:
        store = Store(server)
        bucket = HttpRequest(f"{server.url}/storage/v1/b?project=p", b'{"name": "bucket"}')
        urlopen(bucket).close()
        yield store
