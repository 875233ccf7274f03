"""Read, write, list and remove objects, by local path or gs:// address.

Objects are read whole or by range; `publish` is atomic: a reader sees the old contents or the new,
never a mixture. Requests to a store are counted in the metrics and retried with backoff, a bounded
number of times. Functions that ask a store raise StorageError when the last try fails, and
DeniedError when the account lacks the permission.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import threading
import uuid
from pathlib import Path

import numpy as np
from crc32c import crc32c as crc32c  # (data, crc of what precedes it); releases the GIL

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.gcs.request import Retries, Timeouts
from quickdraw_dist.base.gcs.store import ObjectStore
from quickdraw_dist.base.units import size_text

ATTEMPTS = 6
"""Tries of one request before it fails."""

READINGS = 2 * ATTEMPTS
"""Readings of a doubtful range at most: twice a request's attempts, as two may have to agree."""

BACKOFF_SECONDS = 0.5
"""Mean wait before the first retry; doubles with each, 15 seconds in total."""

CONNECT_SECONDS, STALL_SECONDS = 10.0, 30.0
"""Timeouts of a try: to connect, and without a byte."""

MIN_BYTES_PER_SECOND = 10_000
"""A try is also given up when its whole transfer is slower, STALL_SECONDS aside."""

_TEMPORARY = ".tmp"
"""Suffix of the hidden file into which `replace_file` writes."""


_GCS_HOSTS = ("storage.googleapis.com", "storage.cloud.google.com")


_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+):(/*)(([^/]*)/?(.*))", re.DOTALL)


def local_folder(text: str) -> str:
    """Return a local folder as typed; `~` is kept, because home folders differ between nodes.

    Raises:
        RefusedError: it looks like an address in a store.
    """
    if _SCHEME.fullmatch(text):
        raise RefusedError(text, None, "not a local folder", f"Give a path, or ./{text}")
    return text


def address(text: str) -> str:
    """Return an address as typed in its one spelling: a path with `~` expanded, or gs://.

    Raises:
        RefusedError: it looks like any other kind of address.
    """
    found = _SCHEME.fullmatch(text)
    if found is None:
        path = os.path.expanduser(text)  # noqa: PTH111  Path drops a leading ./
        if path.startswith("~"):
            problem = "no home folder of this user is known"
            raise RefusedError(text, None, problem, f"Give a whole path, or ./{text}")
        return path
    scheme, slashes, rest, host, below = found.groups()
    if scheme.lower() in ("http", "https") and host in _GCS_HOSTS:
        scheme, rest = "gs", below
    if scheme.lower() in ("gs", "gcs"):
        right = f"gs://{rest.rstrip()}"
        if text in (right, right.replace("gs:", "gcs:", 1)):
            return right
        raise RefusedError(text, None, "not the spelling of a bucket's address", f"Give {right}")
    right = f"/{rest.lstrip('/')}" if scheme.lower() == "file" else "a path or a gs:// address"
    folder = "" if slashes else f"; for a folder of that name ./{text}"
    problem = f"{scheme}: is not a known kind of address"
    raise RefusedError(text, None, problem, f"Give {right}{folder}")


def is_remote(url: str) -> bool:
    """Return whether this is an address in an object store rather than a path."""
    return "://" in url


def join(base: str, *parts: str) -> str:
    """Return the address of something below `base`."""
    return "/".join([base.rstrip("/"), *parts]) if is_remote(base) else str(Path(base, *parts))


def read(url: str) -> bytes:
    """Return the contents of a whole object; FileNotFoundError if there is no such object."""
    if not is_remote(url):
        return Path(url).read_bytes()
    return _store().read(url).data


def read_with_crc32c(url: str) -> tuple[bytes, int]:
    """Return the contents of a whole object and their CRC-32C."""
    if is_remote(url):
        whole = _store().read(url)
        return whole.data, whole.crc32c
    data = read(url)
    return data, crc32c(data)


def read_range(url: str, start: int, length: int) -> bytes:
    """Return bytes `start` to `start + length` of an object; fewer only where the object ends."""
    if not is_remote(url):
        with Path(url).open("rb") as file:
            file.seek(start)
            return file.read(length)
    return _store().read_range(url, start, length)


class Scratch(threading.local):
    """A buffer per thread that successive reads share. Allocating memory for every read, or mapping
    the file, costs as much as the read, and threads wait for each other in the kernel."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def view(self, size: int) -> memoryview:
        """Return `size` bytes of the buffer, valid until this thread's next call."""
        if len(self._bytes) < size:
            # Room for a slightly larger read; pages never written to take no memory.
            self._bytes = np.empty(size + size // 8, np.uint8)
        return self._bytes.data[:size]


def read_range_into(scratch: Scratch, url: str, start: int, length: int) -> memoryview:
    """Return what `read_range` does. A local file's bytes lie in `scratch` and are valid until this
    thread uses it again."""
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
    """Return an object's size in bytes; FileNotFoundError if there is no such object."""
    if not is_remote(url):
        return Path(url).stat().st_size
    return int(_store().stat(url)["size"])


def stamp(url: str) -> str:
    """Return what tells an object from one that replaces it: its size, and its generation in a
    store or the time when a local file was last written. FileNotFoundError if there is none."""
    if is_remote(url):
        found = _store().stat(url)
        return f"{found['size']} bytes, generation {found['generation']}"
    stated = Path(url).stat()
    return f"{stated.st_size} bytes, written {stated.st_mtime_ns}"


def sizes(folder: str, suffix: str | tuple[str, ...]) -> dict[str, int]:
    """Return the objects directly below a folder whose names end in `suffix` (or one of them), in
    upper or lower case, sorted, with their sizes in bytes. Hidden ones are not listed: systems,
    editors and unfinished writes leave them (._cat.npy, .#cat.npy).

    Raises:
        FileNotFoundError: there is no such folder.
        RefusedError: a link in it leads nowhere.
    """

    def wanted(name: str) -> bool:
        return name.lower().endswith(suffix) and not name.startswith(".")

    if is_remote(folder):
        found = _store().listing(folder)[0]
        return {name: found[name] for name in sorted(found) if wanted(name)}
    paths = sorted(path for path in Path(folder).iterdir() if wanted(path.name))
    stated = ((path.name, _stated_size(path)) for path in paths)
    return {name: size for name, size in stated if size is not None}


def _stated_size(path: Path) -> int | None:
    """Return a listed file's bytes; None if it has been removed since."""
    try:
        return path.stat().st_size
    except OSError as error:
        if path.is_symlink():
            problem = f"a link to {path.readlink()} that leads nowhere ({error.strerror})"
            remedy = "Restore what it links to, or remove it"
            raise RefusedError(str(path), None, problem, remedy) from None
        if isinstance(error, FileNotFoundError):
            return None
        raise


def folders(folder: str) -> list[str]:
    """Return the names of the folders directly below a folder, sorted; [] if it does not exist."""
    try:
        if not is_remote(folder):
            return sorted(p.name for p in Path(folder).iterdir() if p.is_dir())
        return sorted(_store().listing(folder)[1])
    except FileNotFoundError:
        return []


def object_crc32c(url: str) -> int | None:
    """Return the CRC-32C of a whole object: computed from a local file, or the one that the store
    keeps (None if it keeps none)."""
    if is_remote(url):
        kept = _store().stat(url).get("crc32c")
        return int.from_bytes(base64.b64decode(kept), "big") if kept else None
    crc = 0
    with Path(url).open("rb") as file:
        while chunk := file.read(1 << 24):
            crc = crc32c(chunk, crc)
    return crc


def object_md5(url: str) -> str | None:
    """Return the hexadecimal MD5 of a whole object: computed from a local file, or the one that the
    store keeps (None if it keeps none, as for composed objects)."""
    if is_remote(url):
        kept = _store().stat(url).get("md5Hash")
        return base64.b64decode(kept).hex() if kept else None
    with Path(url).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def exists(url: str) -> bool:
    """Return whether an object exists."""
    try:
        size(url)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def publish(url: str, data: bytes) -> None:
    """Create or replace an object atomically and durably; missing local folders are created."""
    if is_remote(url):
        _store().write(url, data)
        return
    path = Path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)


def replace_file(path: Path, data: bytes, durable: bool = True) -> None:
    """Create or replace a local file atomically: readers see the old contents or the new, also
    after an OSError. If `durable`, the new ones survive a crash of the machine: synced to disk."""
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
    """Return the contents of an object in a store and its generation; (b"", 0) if there is none."""
    try:
        whole = _store().read(url)
        return whole.data, whole.generation
    except FileNotFoundError:
        return b"", 0


def publish_version(url: str, data: bytes, generation: int) -> int:
    """Replace an object in a store if it still has this generation; return the new generation.

    Raises:
        ChangedError: it has another generation, which may be this very write's: a try whose answer
            was lost.
    """
    return _store().write(url, data, generation)


def remove_version(url: str, generation: int) -> None:
    """Remove an object from a store if it still has this generation; ChangedError if not."""
    _store().remove(url, generation)


def remove_temporary_files(folder: str) -> None:
    """Remove the unfinished files of killed writers directly in a local folder."""
    if not is_remote(folder) and Path(folder).is_dir():
        for leftover in Path(folder).glob(f".*{_TEMPORARY}"):
            leftover.unlink(missing_ok=True)


def remove_folder(url: str) -> None:
    """Remove a folder with everything below it, if it exists."""
    if not is_remote(url):
        shutil.rmtree(url, ignore_errors=True)
        return
    try:
        _store().remove_folder(url)
    except FileNotFoundError:
        return


def check_free_space(folder: str, needed_bytes: int, remedy: str) -> None:
    """Raise RefusedError if the disk of a local folder, which need not exist yet, has fewer than
    `needed_bytes` free."""
    if is_remote(folder):
        return
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise RefusedError(
            folder,
            None,
            f"needs about {size_text(needed_bytes)}, the disk has {size_text(free_bytes)} free",
            remedy,
            needed_bytes=needed_bytes,
            free_bytes=free_bytes,
        )


def _store() -> ObjectStore:
    timeouts = Timeouts(CONNECT_SECONDS, STALL_SECONDS, MIN_BYTES_PER_SECOND)
    return ObjectStore(Retries(ATTEMPTS, BACKOFF_SECONDS), timeouts)
