"""A file with a generation, replaced or removed only by a process that has seen its last one.

In an object store that is a precondition of the request. On a disk the file begins with its
generation, which its writer counts up in place. Another process replaces it by a file that only one
of several can create, because it is named after the generation that it replaces.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import ChangedError

_DIGITS = 20
"""Width of the generation, so that counting it up overwrites nothing else."""

_TAKEN_OVER = 10**9
"""Generations between two writers, so that none of the first one's is the second one's."""

_CLAIM_SECONDS = 60.0
"""Age of a replacement whose process was killed before it could put it in place."""


def read(url: str) -> tuple[bytes, int]:
    """Return the contents and the generation; (b"", 0) where there is no file."""
    if storage.is_remote(url):
        return storage.read_version(url)
    try:
        return _parse(Path(url).read_bytes())
    except FileNotFoundError:
        return b"", 0


def publish(url: str, data: bytes, generation: int) -> int:
    """Replace the file if it still has this generation (0: create it); return the new one.

    Raises:
        ChangedError: it has another generation.
        OSError, StorageError: it could not be written.
    """
    if storage.is_remote(url):
        return storage.publish_version(url, data, generation)
    path = Path(url)
    try:
        if not generation:
            _create(path, _stored(data, 1))
            return 1
        if _count_up(path, data, generation):
            return generation + 1
        _replace(path, generation, _stored(data, generation + _TAKEN_OVER))
        return generation + _TAKEN_OVER
    except (FileExistsError, FileNotFoundError):
        raise _changed(url) from None


def remove(url: str, generation: int) -> None:
    """Remove the file if it still has this generation; ChangedError if not."""
    if storage.is_remote(url):
        storage.remove_version(url, generation)
    elif read(url)[1] == generation:
        Path(url).unlink(missing_ok=True)
    else:
        raise _changed(url)


def _stored(data: bytes, generation: int) -> bytes:
    return f"{generation:0{_DIGITS}}\n".encode() + data


def _parse(stored: bytes) -> tuple[bytes, int]:
    head, _, data = stored.partition(b"\n")
    if len(head) != _DIGITS or not head.isdigit():
        return stored, 1  # another program's, or of a process killed while it created the file
    return data, int(head)


def _create(path: Path, stored: bytes) -> None:
    with path.open("xb", buffering=0) as file:
        file.write(stored)
        os.fsync(file.fileno())  # also past the cache of a network file system


def _count_up(path: Path, data: bytes, generation: int) -> bool:
    """Count up the generation of a file that has this one; return False where it has other data."""
    with path.open("r+b", buffering=0) as file:
        old, current = _parse(file.read())
        if current != generation:
            raise _changed(str(path))
        if old != data:
            return False
        file.seek(0)
        file.write(_stored(data, generation + 1))
        os.fsync(file.fileno())
        return True


def _replace(path: Path, generation: int, stored: bytes) -> None:
    """Replace another process's file, if it has this generation."""
    claim = path.with_name(f"{path.name}.{generation}.tmp")
    try:
        _create(claim, stored)
    except FileExistsError:
        _remove_old_claim(claim)
        raise
    if read(str(path))[1] != generation:  # another process was faster, or the writer is alive
        claim.unlink(missing_ok=True)
        raise _changed(str(path))
    claim.replace(path)


def _remove_old_claim(claim: Path) -> None:
    """Remove the claim of a killed process, by the clock of the disk's own host."""
    probe = claim.with_name(f"{claim.name}.{uuid.uuid4().hex}.tmp")
    _create(probe, b"")
    try:
        if probe.stat().st_mtime > claim.stat().st_mtime + _CLAIM_SECONDS:
            claim.unlink(missing_ok=True)
    finally:
        probe.unlink()


def _changed(url: str) -> ChangedError:
    return ChangedError(f"{url}: changed by another process")
