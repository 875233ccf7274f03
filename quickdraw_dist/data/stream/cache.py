"""The node cache: a folder that fetches each shard of a remote dataset once per node."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
import threading
from collections import defaultdict
from pathlib import Path

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError, RefusedError
from quickdraw_dist.base.process.lock import FileLock, UnlockableError
from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.data.shards.schema import ShardEntry


def fetch_verified(url: str, shard: ShardEntry) -> bytes:
    """Fetch a whole shard and check its length and CRC-32C against the manifest; retry once.

    Raises:
        CorruptError: it is wrong twice; names the shard and both checksums.
    """
    for _ in range(2):
        data, crc = storage.read_with_crc32c(url)
        if len(data) == shard.bytes and crc == shard.crc32c:
            return data
        metrics.STORE_RETRIES.labels("checksum").inc()
    raise CorruptError(
        url,
        None,
        f"{len(data):,} bytes with crc32c {crc:08x}, the manifest says {shard.bytes:,} with "
        f"{shard.crc32c:08x}",
        "Remove it there and run make shard",
    )


_UNUSABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST,
    errno.ESTALE
}  # fmt: skip
"""Errors of a cache folder that is full or unusable: the run continues without it, and warns."""


def _warn_damaged(target: Path) -> None:
    """Warn of a damaged file: a disk that fails once may fail again."""
    print(f"cache: {target}: not what the manifest says; fetched again", file=sys.stderr)


@functools.cache
def _expand(folder: str) -> str | None:
    """Return the cache folder with `~` expanded; None, reported once per node, for a user without
    a home folder (a uid without an account)."""
    try:
        return storage.address(folder)
    except RefusedError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(
                f"cache: {folder}: {error.problem}; streaming without it. Another folder: "
                "--stream.cache_folder",
                file=sys.stderr,
            )
        return None


class ShardCache:
    """A folder of shards with a size limit, shared by all ranks and runs of this node."""

    def __init__(self, folder: str, copy: str, limit_bytes: int) -> None:
        """Open a cache of at most `limit_bytes` over all datasets; `copy` identifies the bytes of
        this one, which get a folder of their own."""
        # A folder of its own: other files in the folder named by the user are never evicted.
        expanded = _expand(folder)
        self.folder = Path(expanded or folder) / "quickdraw-shards"
        self.home = self.folder / copy[:16]
        self.limit_bytes = limit_bytes
        self._full = expanded is None
        # Threads of one process wait on these: locks between processes have to be polled.
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def path(self, url: str, shard: ShardEntry) -> Path | None:
        """Return the local copy of a shard, fetched if needed; None if the cache cannot hold it.

        Raises:
            CorruptError, StorageError: the shard could not be fetched.
        """
        if shard.bytes > self.limit_bytes or self._full:
            return None
        target = self.home / shard.name
        try:
            if self._hit(target, shard):
                return target
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._locks[shard.name], FileLock(Path(f"{target}.lock")):
                if not self._hit(target, shard):
                    if target.exists():
                        _warn_damaged(target)
                    metrics.CACHE_MISSES.inc()
                    self._fetch(url, shard, target)
        except FileNotFoundError:
            return None  # the folder is being deleted: read this shard without the cache
        except OSError as error:
            unlockable = isinstance(error, UnlockableError)
            if error.errno not in _UNUSABLE and not unlockable:
                raise
            self._full = True
            problem = f"{'no locks there: ' if unlockable else ''}{error.strerror}"
            print(
                f"cache: {self.folder}: {problem}; streaming without it from now on. "
                "Use another --stream.cache_folder or a smaller --stream.cache_bytes",
                file=sys.stderr,
            )
            return None
        return target

    def _hit(self, target: Path, shard: ShardEntry) -> bool:
        try:
            if target.stat().st_size != shard.bytes:
                return False
            os.utime(target)  # least recently used is evicted first
        except FileNotFoundError:
            return False
        metrics.CACHE_HITS.inc()
        return True

    def forget(self, shard: ShardEntry) -> None:
        """Delete a local copy that turned out to be damaged."""
        target = self.home / shard.name
        with contextlib.suppress(FileNotFoundError):  # another thread deleted it
            target.unlink()
            _warn_damaged(target)

    def _fetch(self, url: str, shard: ShardEntry, target: Path) -> None:
        data = fetch_verified(url, shard)
        target.parent.mkdir(parents=True, exist_ok=True)  # may have been deleted meanwhile
        # One writer at a time: two that each evicted for themselves would exceed the limit.
        with self._locks["write"], FileLock(self.folder / "write.lock"):
            self._evict(shard.bytes)
            storage.replace_file(target, data, durable=False)

    def _evict(self, coming_bytes: int) -> None:
        """Delete the least recently used shards until `coming_bytes` more fit the limit.

        A reader that has a deleted shard open can still read it; later readers fetch it again.
        """
        for leftover in self.folder.rglob(".*.tar.*"):  # from a process killed while writing
            leftover.unlink(missing_ok=True)
        held = []
        for path in self.folder.rglob("*.tar"):
            try:
                info = path.stat()
            except FileNotFoundError:
                continue  # deleted meanwhile
            held.append((info.st_mtime, info.st_size, path))
        total = sum(size for _, size, _ in held)
        for _, size, path in sorted(held):
            if total + coming_bytes <= self.limit_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        metrics.CACHE_BYTES.set(total + coming_bytes)
