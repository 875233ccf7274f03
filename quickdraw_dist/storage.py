"""Local paths and gs:// addresses behind one small set of functions.

The only file that knows which is which. Reading is whole or by range; publishing is atomic (a
reader sees the old object or the new one, never a part); requests to a store are repeated with
backoff, a bounded number of times, and counted.
"""

from __future__ import annotations

import base64
import os
import random
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import google_crc32c

from quickdraw_dist import telemetry
from quickdraw_dist.errors import RefusedError

T = TypeVar("T")

ATTEMPTS = 6
"""Tries of one request before it is an error."""

BACKOFF_SECONDS = 0.5
"""Mean wait before the first repetition; doubles with each, so 15 seconds over all."""

_TEMPORARY = ".tmp"
"""Ends the hidden name of a file that is being written."""

CONNECT_SECONDS, STALL_SECONDS = 10.0, 30.0
"""A connection that takes longer, or a body that stands still for longer, is given up."""


class StorageError(Exception):
    """A store did not answer, or answered wrongly, within the retries; names the object."""


def is_remote(url: str) -> bool:
    """Whether the address is an object store's rather than a path."""
    return "://" in url


def join(base: str, *parts: str) -> str:
    """An address below another."""
    return "/".join([base.rstrip("/"), *parts]) if is_remote(base) else str(Path(base, *parts))


def crc32c(data: bytes | memoryview, crc: int = 0) -> int:
    """CRC-32C of the bytes, going on from that of the bytes before them."""
    return int(google_crc32c.extend(crc, bytes(data)))


def read(url: str) -> bytes:
    """A whole object.

    Raises:
        FileNotFoundError: there is none.
        StorageError: the store failed.
    """
    if not is_remote(url):
        return Path(url).read_bytes()
    return _request("read", url, lambda fs, path: bytes(fs.cat_file(path)))


def read_range(url: str, start: int, length: int) -> bytes:
    """Bytes `start` to `start + length` of an object; fewer only where the object ends."""
    if not is_remote(url):
        with Path(url).open("rb") as file:
            file.seek(start)
            return file.read(length)
    return _request("read_range", url, lambda fs, path: _cat_range(fs, path, start, length))


def _cat_range(fs: Any, path: str, start: int, length: int) -> bytes:
    """A store answers 416 where a file would give nothing: beyond the end of the object."""
    try:
        return bytes(fs.cat_file(path, start=start, end=start + length)) if length else b""
    except Exception as error:
        if _status(error) == 416:
            return b""
        raise


def size(url: str) -> int:
    """Bytes of an object; FileNotFoundError if there is none."""
    if not is_remote(url):
        return Path(url).stat().st_size
    return _request("stat", url, lambda fs, path: int(fs.info(path)["size"]))


def sizes(folder: str, suffix: str) -> dict[str, int]:
    """Names ending in `suffix` directly below a folder, sorted, with their bytes.

    Raises:
        FileNotFoundError: there is no such folder.
        StorageError: the store failed.
    """
    if not is_remote(folder):
        found = {p.name: p.stat().st_size for p in Path(folder).iterdir() if p.suffix == suffix}
    else:
        listing = _request("list", folder, lambda fs, path: fs.ls(path, detail=True, refresh=True))
        found = {Path(e["name"]).name: int(e["size"]) for e in listing}
    return {name: found[name] for name in sorted(found) if name.endswith(suffix)}


def folders(folder: str) -> list[str]:
    """Names of the folders directly below a folder, sorted; none when it does not exist."""
    try:
        if not is_remote(folder):
            return sorted(p.name for p in Path(folder).iterdir() if p.is_dir())
        listing = _request("list", folder, lambda fs, path: fs.ls(path, detail=True, refresh=True))
    except FileNotFoundError:
        return []
    return sorted(Path(e["name"]).name for e in listing if e["type"] == "directory")


def own_crc32c(url: str) -> int | None:
    """CRC-32C of a whole object: the one that the store keeps (None if it keeps none), or that of
    a local file, read through."""
    if is_remote(url):
        kept = _request("stat", url, lambda fs, path: fs.info(path)).get("crc32c")
        return int.from_bytes(base64.b64decode(kept), "big") if kept else None
    crc = 0
    with Path(url).open("rb") as file:
        while chunk := file.read(1 << 24):
            crc = crc32c(chunk, crc)
    return crc


def exists(url: str) -> bool:
    """Whether there is such an object."""
    try:
        size(url)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def publish(url: str, data: bytes) -> None:
    """Write an object so that readers see all of it or none, also after a crash."""
    if is_remote(url):
        _request("write", url, lambda fs, path: fs.pipe_file(path, data), sent=len(data))
        return
    path = Path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        # Not tempfile's: its files are closed to other users, and `open` heeds the umask.
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sweep(folder: str) -> None:
    """Remove what killed writers left half-written directly in a local folder."""
    if not is_remote(folder) and Path(folder).is_dir():
        for leftover in Path(folder).glob(f".*{_TEMPORARY}"):
            leftover.unlink(missing_ok=True)


def remove_folder(url: str) -> None:
    """Remove a folder and all below it; nothing happens when there is none."""
    if not is_remote(url):
        shutil.rmtree(url, ignore_errors=True)
        return
    try:
        _request("remove", url, lambda fs, path: fs.rm(path, recursive=True))
    except FileNotFoundError:
        return


def check_room(folder: str, needed_bytes: int, remedy: str) -> None:
    """Refuse when a local disk cannot hold `needed_bytes` more."""
    if is_remote(folder):
        return
    there = Path(folder).absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        raise RefusedError(
            f"{folder}: needs about {needed_bytes / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB "
            f"free; {remedy}"
        )


def _request(operation: str, url: str, call: Callable[[Any, str], T], sent: int = 0) -> T:
    """One request to a store, repeated while the trouble looks passing."""
    for attempt in range(1, ATTEMPTS + 1):
        telemetry.STORE_REQUESTS.labels(operation).inc()
        try:
            answer = call(_filesystem(url), url)
        except FileNotFoundError:
            raise
        except Exception as error:
            kind = type(error).__name__
            if attempt == ATTEMPTS or not _passing(error):
                telemetry.STORE_ERRORS.labels(kind).inc()
                raise StorageError(
                    f"{url}: {operation} failed after {attempt} "
                    f"{'try' if attempt == 1 else 'tries'}: {kind}: {error}"
                ) from error
            telemetry.STORE_RETRIES.labels(kind).inc()
            if attempt > 1:  # one hiccup is not worth a line
                print(
                    f"store: {url}: {operation}: {kind}; try {attempt + 1} of {ATTEMPTS}",
                    file=sys.stderr,
                )
            # Jitter keeps the ranks of a big job from coming back all at once.
            time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1) * (0.5 + random.random()))  # noqa: S311
        else:
            received = len(answer) if isinstance(answer, bytes) else 0
            telemetry.STORE_BYTES.labels(operation).inc(received + sent)
            return answer
    raise AssertionError("the loop returns or raises")


def _filesystem(url: str) -> Any:
    if url.startswith(("gs://", "gcs://")):
        return _gcs(os.environ.get("STORAGE_EMULATOR_HOST"))
    return fsspec.core.url_to_fs(url)[0]


@cache
def _gcs(endpoint: str | None) -> Any:
    """A client of GCS, or of the server in STORAGE_EMULATOR_HOST, that tries every request once.

    The class is taken from `gcsfs.core` because the package's default one first probes the bucket
    over gRPC. It repeats failed requests out of sight, six times; `_request` does that here,
    where the repetitions are bounded and counted once.
    """
    import aiohttp
    from gcsfs.core import GCSFileSystem

    class Once(GCSFileSystem):  # type: ignore[misc]
        _request = GCSFileSystem._request.__wrapped__

    timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=STALL_SECONDS)
    return Once(
        token="anon" if endpoint else None,  # a local server has no accounts
        timeout=timeout,
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error of gcsfs or aiohttp, where it tells."""
    code = getattr(error, "code", None) or getattr(error, "status", None)
    if code is None and isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return 403  # gcsfs keeps only the word
    return int(str(code)) if str(code).isdigit() else None


def _passing(error: Exception) -> bool:
    """Whether the same request may succeed later: not when it is forbidden or malformed."""
    if isinstance(error, (PermissionError, ImportError, ValueError)):
        return False
    status = _status(error)
    return status is None or status in (408, 429) or status >= 500
