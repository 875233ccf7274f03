"""Local paths and gs:// addresses behind one small set of functions.

The only file that knows which is which. Reading is whole or by range; publishing is atomic (a
reader sees the old object or the new one, never a part); requests to a store are repeated with
backoff, a bounded number of times, and counted.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import threading
import uuid
from pathlib import Path

import numpy as np
from crc32c import crc32c as crc32c  # goes on from a second argument; other threads run meanwhile

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.gcs.request import Retries, Timeouts
from quickdraw_dist.base.gcs.store import ObjectStore

ATTEMPTS = 6
"""Tries of one request before it is an error."""

BACKOFF_SECONDS = 0.5
"""Mean wait before the first repetition; doubles with each, so 15 seconds over all."""

_TEMPORARY = ".tmp"
"""Ends the hidden name of a file that is being written."""

CONNECT_SECONDS, STALL_SECONDS = 10.0, 30.0
"""A connection that takes longer, or a body that stands still for longer, is given up."""

MIN_BYTES_PER_SECOND = 10_000
"""What comes or goes slower over its whole length, STALL_SECONDS aside, is given up, too."""


def is_remote(url: str) -> bool:
    """Whether the address is an object store's rather than a path."""
    return "://" in url


def join(base: str, *parts: str) -> str:
    """An address below another."""
    return "/".join([base.rstrip("/"), *parts]) if is_remote(base) else str(Path(base, *parts))


def read(url: str) -> bytes:
    """A whole object.

    Raises:
        FileNotFoundError: there is none.
        StorageError: the store failed.
    """
    if not is_remote(url):
        return Path(url).read_bytes()
    return _store().read(url).data


def read_with_crc32c(url: str) -> tuple[bytes, int]:
    """The same with its checksum, which a store's client knows already."""
    if is_remote(url):
        whole = _store().read(url)
        return whole.data, whole.crc32c
    data = read(url)
    return data, crc32c(data)


def read_range(url: str, start: int, length: int) -> bytes:
    """Bytes `start` to `start + length` of an object; fewer only where the object ends."""
    if not is_remote(url):
        with Path(url).open("rb") as file:
            file.seek(start)
            return file.read(length)
    return _store().read_range(url, start, length)


class Scratch(threading.local):
    """Memory that is read into again and again, each thread's own. New memory for every read, or a
    map of the file, costs as much as the reading, and makes threads wait for each other in the
    system."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._bytes = np.empty(0, np.uint8)

    def view(self, size: int) -> memoryview:
        """So many bytes, good until the thread asks again."""
        if len(self._bytes) < size:
            # The next one may be a little larger; what is never written to takes no memory.
            self._bytes = np.empty(size + size // 8, np.uint8)
        return self._bytes.data[:size]


def read_range_into(scratch: Scratch, url: str, start: int, length: int) -> memoryview:
    """Like `read_range`; what comes from a local file is good until `scratch` is used again."""
    if is_remote(url):
        return memoryview(read_range(url, start, length))
    into, done = scratch.view(length), 0
    handle = os.open(url, os.O_RDONLY)
    try:
        while done < length and (got := os.preadv(handle, [into[done:]], start + done)):
            done += got
    finally:
        os.close(handle)
    return into[:done]


def size(url: str) -> int:
    """Bytes of an object; FileNotFoundError if there is none."""
    if not is_remote(url):
        return Path(url).stat().st_size
    return int(_store().stat(url)["size"])


def sizes(folder: str, suffix: str) -> dict[str, int]:
    """Names ending in `suffix` directly below a folder, sorted, with their bytes.

    Raises:
        FileNotFoundError: there is no such folder.
        StorageError: the store failed.
    """
    if not is_remote(folder):
        found = {p.name: p.stat().st_size for p in Path(folder).iterdir() if p.suffix == suffix}
    else:
        found, _ = _store().listing(folder)
    return {name: found[name] for name in sorted(found) if name.endswith(suffix)}


def folders(folder: str) -> list[str]:
    """Names of the folders directly below a folder, sorted; none when it does not exist."""
    try:
        if not is_remote(folder):
            return sorted(p.name for p in Path(folder).iterdir() if p.is_dir())
        return sorted(_store().listing(folder)[1])
    except FileNotFoundError:
        return []


def object_crc32c(url: str) -> int | None:
    """CRC-32C of a whole object: the one that the store keeps (None if it keeps none), or that of
    a local file, read through."""
    if is_remote(url):
        kept = _store().stat(url).get("crc32c")
        return int.from_bytes(base64.b64decode(kept), "big") if kept else None
    crc = 0
    with Path(url).open("rb") as file:
        while chunk := file.read(1 << 24):
            crc = crc32c(chunk, crc)
    return crc


def object_md5(url: str) -> str | None:
    """MD5 of a whole object, hexadecimal: the one that the store keeps (None if it keeps none, as
    of composed objects), or that of a local file, read through."""
    if is_remote(url):
        kept = _store().stat(url).get("md5Hash")
        return base64.b64decode(kept).hex() if kept else None
    with Path(url).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


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
        _store().write(url, data)
        return
    path = Path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)


def replace_file(path: Path, data: bytes, durable: bool = True) -> None:
    """Create or replace a local file atomically: readers see the old contents or the new.

    Args:
        path: of the file, in an existing folder; the umask decides who may read it.
        data: its new contents.
        durable: whether it also survives a crash of the machine, which takes a sync to disk.

    Raises:
        OSError: it could not be written; the old contents are unchanged.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")
    try:
        # Not tempfile's: its files are closed to other users, and `open` heeds the umask.
        with temporary.open("xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_version(url: str) -> tuple[bytes, int]:
    """A whole object of a store and its generation, 0 for one that is not there."""
    try:
        whole = _store().read(url)
        return whole.data, whole.generation
    except FileNotFoundError:
        return b"", 0


def publish_version(url: str, data: bytes, generation: int) -> int:
    """Replace an object of a store, if it is still of this generation; returns the new one.

    Raises:
        ChangedError: it is not. (It may be this very write, done by a try whose answer was lost.)
    """
    return _store().write(url, data, generation)


def remove_version(url: str, generation: int) -> None:
    """Remove an object of a store, if it is still of this generation; else ChangedError."""
    _store().remove(url, generation)


def remove_temporary_files(folder: str) -> None:
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
        _store().remove_folder(url)
    except FileNotFoundError:
        return


def check_free_space(folder: str, needed_bytes: int, remedy: str) -> None:
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


def _store() -> ObjectStore:
    timeouts = Timeouts(CONNECT_SECONDS, STALL_SECONDS, MIN_BYTES_PER_SECOND)
    return ObjectStore(Retries(ATTEMPTS, BACKOFF_SECONDS), timeouts)
