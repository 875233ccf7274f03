"""Decoded blocks of one split, from a local folder, the node cache, or a store by range."""

from __future__ import annotations

import sys

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.base.settings import Stream
from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.data.order.order import Piece
from quickdraw_dist.data.shards import blocks
from quickdraw_dist.data.shards.schema import Manifest
from quickdraw_dist.data.stream.cache import ShardCache


class SplitReader:
    """Thread-safe access to the blocks of one split."""

    def __init__(
        self, folder: str, dataset: Manifest, split: str, stream: Stream, shards_at_once: int = 1
    ) -> None:
        """Open the split of a dataset in `folder`. This node's ranks read `shards_at_once` shards
        alternately; a cache that does not hold them is not used, as it would fetch a shard again
        for every block."""
        self.shards = dataset.splits[split]
        self.block_counts = dataset.block_counts(split)
        self.per_drawing = dataset.tiles_per_drawing  # None for bitmaps
        self.remote = storage.is_remote(folder)
        self._urls = [storage.join(folder, shard.name) for shard in self.shards]
        self.cache: ShardCache | None = None
        if self.remote and stream.cache_bytes:
            shards_at_once = min(shards_at_once, len(self.shards))
            needed = shards_at_once * self.largest_shard_bytes
            if needed <= stream.cache_bytes:
                self.cache = ShardCache(stream.cache_folder, dataset.copy_id, stream.cache_bytes)
            else:
                print(
                    f"cache: --stream.cache_bytes {stream.cache_bytes:,} does not hold the "
                    f"{shards_at_once:,} shards that this node reads alternately ({needed:,} "
                    "bytes); streaming without it, one request per block",
                    file=sys.stderr,
                )

    @property
    def largest_shard_bytes(self) -> int:
        """Bytes of the largest shard in the split."""
        return max(shard.bytes for shard in self.shards)

    def url(self, shard: int) -> str:
        """Return the path or address of a shard."""
        return self._urls[shard]

    def read(self, shard: int, number: int, scratch: storage.Scratch | None = None) -> blocks.Block:
        """Return a block, valid until this thread uses `scratch` again; it is read again if it
        differs from the manifest.

        Raises:
            CorruptError: the block is wrong each time, or its shard is missing.
            StorageError: the store does not answer.
        """
        entry = self.shards[shard].blocks[number]
        # A range arrives without a checksum; a file or a cached shard was checked when written.
        attempts = storage.ATTEMPTS if self.remote and self.cache is None else 2
        problem = ""
        for attempt in range(1, attempts + 1):
            data, streamed = self._read(
                scratch or storage.Scratch(), shard, entry.offset, entry.size
            )
            try:
                block = blocks.decode(data, entry.drawings)
                if block.crc == entry.crc32c:
                    return block
                problem = f"contents crc32c {block.crc:08x}, the manifest says {entry.crc32c:08x}"
            except CorruptError as error:
                problem = str(error)
            if self.cache is not None and not streamed:
                self.cache.forget(self.shards[shard])
            elif streamed and attempt < attempts:
                metrics.STORE_RETRIES.labels("checksum").inc()
                print(
                    f"store: {self.url(shard)}: block {number}: {problem}; try {attempt + 1} of "
                    f"{attempts}",
                    file=sys.stderr,
                )
        raise CorruptError(
            f"{self.url(shard)}: block {number}",
            None,
            problem,
            "Remove that shard and run make shard, which builds what is missing",
        )

    def piece(self, piece: Piece, scratch: storage.Scratch | None = None) -> blocks.Block:
        """Return the drawings of a piece; its block is read whole."""
        block = self.read(piece.shard, piece.block, scratch)
        return block if len(piece) == len(block.rows) else block.slice(piece.start, piece.stop)

    def _read(
        self, scratch: storage.Scratch, shard: int, offset: int, size: int
    ) -> tuple[memoryview, bool]:
        """Return bytes of a shard, from the cache if it can hold the shard, and whether they came
        from a store."""
        url, entry = self.url(shard), self.shards[shard]
        while self.cache is not None and (path := self.cache.path(url, entry)) is not None:
            try:
                return storage.read_range_into(scratch, str(path), offset, size), False
            except FileNotFoundError:
                continue  # evicted before it was opened
        try:
            return storage.read_range_into(scratch, url, offset, size), self.remote
        except FileNotFoundError:
            raise CorruptError(
                url, None, "missing, though the manifest names it", "Run make shard again"
            ) from None
