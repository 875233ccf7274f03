"""The node cache: each shard of a remote dataset is fetched once a node, whoever asks first."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from collections import defaultdict
from pathlib import Path

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.base.process import FileLock, UnlockableError
from quickdraw_dist.base.telemetry import metrics as telemetry
from quickdraw_dist.data.shards.manifest import ShardEntry


def fetch_verified(url: str, shard: ShardEntry) -> bytes:
    """A whole shard whose length and CRC-32C are the manifest's; fetched again once if not.

    Raises:
        CorruptError: it is wrong twice in a row; names the shard and both checksums.
    """
    for _ in range(2):
        data, crc = storage.read_with_crc32c(url)
        if len(data) == shard.bytes and crc == shard.crc32c:
            return data
        telemetry.STORE_RETRIES.labels("checksum").inc()
    raise CorruptError(
        f"{url}: {len(data):,} bytes with crc32c {crc:08x}, the manifest says {shard.bytes:,} with "
        f"{shard.crc32c:08x}; remove it there and run make shard"
    )


_WITHOUT = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST,
    errno.ESTALE
}  # fmt: skip
"""A cache folder that is full or no good: the run goes on without it and says so."""


def _say_damaged(target: Path) -> None:
    """A disk that does this once may do it again: whoever reads the log should know."""
    print(f"cache: {target}: not what the manifest says; fetched again", file=sys.stderr)


class ShardCache:
    """A folder of shards with a size limit, shared by all ranks and runs of this node."""

    def __init__(self, folder: str, copy: str, limit_bytes: int) -> None:
        """`copy` names the dataset's bytes: each has a folder of its own, so two never meet."""
        # Its own: what else lies in the folder that was named is not the cache's to evict.
        self.folder = Path(folder).expanduser() / "quickdraw-shards"
        self.home = self.folder / copy[:16]
        self.limit_bytes = limit_bytes
        self._full = False
        # Threads of one process wait here: the lock between processes is one that has to be polled.
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def path(self, url: str, shard: ShardEntry) -> Path | None:
        """The local copy of a shard, fetched if need be; None when the cache cannot hold it.

        Raises:
            CorruptError, StorageError: the shard cannot be had.
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
                        _say_damaged(target)
                    telemetry.CACHE_MISSES.inc()
                    self._fetch(url, shard, target)
        except FileNotFoundError:
            return None  # somebody cleans up the folder just now: this once without it
        except OSError as error:
            unlockable = isinstance(error, UnlockableError)
            if error.errno not in _WITHOUT and not unlockable:
                raise
            self._full = True
            problem = f"{'no locks there: ' if unlockable else ''}{error.strerror}"
            print(
                f"cache: {self.folder}: {problem}; streaming without it from here on. "
                "Another place: --stream.cache_folder; a limit: --stream.cache_bytes",
                file=sys.stderr,
            )
            return None
        return target

    def _hit(self, target: Path, shard: ShardEntry) -> bool:
        try:
            if target.stat().st_size != shard.bytes:
                return False
            os.utime(target)  # what was used last is evicted last
        except FileNotFoundError:
            return False
        telemetry.CACHE_HITS.inc()
        return True

    def forget(self, shard: ShardEntry) -> None:
        """Drop a local copy that turned out wrong."""
        target = self.home / shard.name
        with contextlib.suppress(FileNotFoundError):  # another thread was faster
            target.unlink()
            _say_damaged(target)

    def _fetch(self, url: str, shard: ShardEntry, target: Path) -> None:
        data = fetch_verified(url, shard)
        target.parent.mkdir(parents=True, exist_ok=True)  # somebody may have cleaned up meanwhile
        # One writes at a time, or two that each made room would go over the limit together.
        with self._locks["write"], FileLock(self.folder / "write.lock"):
            self._evict(shard.bytes)
            storage.replace_file(target, data, durable=False)

    def _evict(self, coming_bytes: int) -> None:
        """Remove the least recently used shards until `coming_bytes` more fit the limit.

        A reader that has one open keeps reading it; one that comes later fetches it again.
        """
        for leftover in self.folder.rglob(".*.tar.*"):  # of a process killed while it wrote
            leftover.unlink(missing_ok=True)
        held = []
        for path in self.folder.rglob("*.tar"):
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue  # another dataset's owner removed it just now
            held.append((facts.st_mtime, facts.st_size, path))
        total = sum(size for _, size, _ in held)
        for _, size, path in sorted(held):
            if total + coming_bytes <= self.limit_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        telemetry.CACHE_BYTES.set(total + coming_bytes)
