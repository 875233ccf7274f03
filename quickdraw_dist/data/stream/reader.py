"""Decoded blocks of one split, from a local folder, through the node cache, or by range."""

from __future__ import annotations

import sys

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.base.settings import Stream
from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.data.order.order import Piece
from quickdraw_dist.data.shards import blocks
from quickdraw_dist.data.shards.manifest import Manifest
from quickdraw_dist.data.stream.cache import ShardCache


class SplitReader:
    """Thread-safe access to the blocks of one split."""

    def __init__(
        self, folder: str, dataset: Manifest, split: str, stream: Stream, shards_at_once: int = 1
    ) -> None:
        """`folder` is where the manifest lies. `shards_at_once` are read in turns on this node: a
        cache with less room would fetch the same shard again for every block, so it is not used.
        """
        self.shards = dataset.splits[split]
        self.block_counts = dataset.block_counts(split)
        self.remote = storage.is_remote(folder)
        self._urls = [storage.join(folder, shard.name) for shard in self.shards]
        self.cache: ShardCache | None = None
        if self.remote and stream.cache_bytes:
            needed = min(shards_at_once, len(self.shards)) * self.largest_shard_bytes
            if needed <= stream.cache_bytes:
                self.cache = ShardCache(stream.cache_folder, dataset.copy_id, stream.cache_bytes)
            else:
                print(
                    f"cache: --stream.cache_bytes {stream.cache_bytes:,} does not hold the "
                    f"{shards_at_once:,} shards that this node reads at once ({needed:,} bytes); "
                    "streaming without it, one request a block",
                    file=sys.stderr,
                )

    @property
    def largest_shard_bytes(self) -> int:
        """Bytes of the largest shard."""
        return max(shard.bytes for shard in self.shards)

    def url(self, shard: int) -> str:
        """Where a shard lies."""
        return self._urls[shard]

    def read(self, shard: int, number: int, scratch: storage.Scratch | None = None) -> blocks.Block:
        """A block, read afresh when it is not what the manifest says. It is good until
        this thread uses `scratch` again, where that is given.

        Raises:
            CorruptError: it stays wrong, or its shard is missing.
            StorageError: the store does not answer.
        """
        entry = self.shards[shard].blocks[number]
        # A range has no checksum of its own on the way, a file or a cached shard had one.
        attempts = storage.ATTEMPTS if self.remote and self.cache is None else 2
        trouble = ""
        for attempt in range(1, attempts + 1):
            data, streamed = self._read(
                scratch or storage.Scratch(), shard, entry.offset, entry.size
            )
            try:
                block = blocks.decode(data, entry.drawings)
                if block.crc == entry.crc32c:
                    return block
                trouble = f"contents crc32c {block.crc:08x}, the manifest says {entry.crc32c:08x}"
            except CorruptError as error:
                trouble = str(error)
            if self.cache is not None and not streamed:
                self.cache.forget(self.shards[shard])
            elif streamed and attempt < attempts:
                metrics.STORE_RETRIES.labels("checksum").inc()
                print(
                    f"store: {self.url(shard)}: block {number}: {trouble}; try {attempt + 1} of "
                    f"{attempts}",
                    file=sys.stderr,
                )
        raise CorruptError(
            f"{self.url(shard)}: block {number}: {trouble}; remove that shard and run make shard: "
            "it builds again what is missing"
        )

    def piece(self, piece: Piece, scratch: storage.Scratch | None = None) -> blocks.Block:
        """The drawings of a piece, out of its block, which is read whole."""
        block = self.read(piece.shard, piece.block, scratch)
        return block if len(piece) == len(block.rows) else block.part(piece.start, piece.stop)

    def _read(
        self, scratch: storage.Scratch, shard: int, offset: int, size: int
    ) -> tuple[memoryview, bool]:
        """Bytes of a shard from wherever it is nearest, and whether they came from a store."""
        url, entry = self.url(shard), self.shards[shard]
        while self.cache is not None and (path := self.cache.path(url, entry)) is not None:
            try:
                return storage.read_range_into(scratch, str(path), offset, size), False
            except FileNotFoundError:
                continue  # evicted between the look and the opening
        try:
            return storage.read_range_into(scratch, url, offset, size), self.remote
        except FileNotFoundError:
            raise CorruptError(
                f"{url}: missing, though the manifest names it; run make shard again"
            ) from None
