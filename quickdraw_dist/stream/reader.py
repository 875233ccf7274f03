"""Decoded blocks of one split, from a local folder, through the node cache, or by range."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist import storage
from quickdraw_dist.config import Stream
from quickdraw_dist.errors import CorruptError
from quickdraw_dist.shards.blocks import Block, decode
from quickdraw_dist.shards.manifest import Manifest
from quickdraw_dist.stream.cache import ShardCache
from quickdraw_dist.stream.order import Piece

_SHARED_BLOCKS = 32
"""Decoded blocks kept for the next lane that begins in them; 26 MB at 1,024 drawings."""


class SplitReader:
    """Thread-safe access to the blocks of one split."""

    def __init__(self, folder: str, dataset: Manifest, split: str, stream: Stream) -> None:
        """`folder` is where the manifest lies."""
        self.shards = dataset.splits[split]
        self.block_counts = dataset.block_counts(split)
        self._folder = folder
        self._cache = (
            ShardCache(stream.cache_folder, dataset.copy_id, stream.cache_bytes)
            if storage.is_remote(folder)
            else None
        )
        self._lock = threading.Lock()
        self._shared: OrderedDict[tuple[int, int], Future[Block]] = OrderedDict()

    def read(
        self, piece: Piece, drawings: NDArray[np.uint8], labels: NDArray[np.uint16],
        rows: NDArray[np.uint32],
    ) -> None:  # fmt: skip
        """Decode a piece into preallocated arrays, (n, 28, 28), (n,) and (n,)."""
        if len(piece) == self.shards[piece.shard].blocks[piece.block].drawings:
            block = self._decode(piece.shard, piece.block, drawings)
            labels[:], rows[:] = block.labels, block.rows
            return
        block = self._shared_block(piece.shard, piece.block)
        part = slice(piece.start, piece.stop)
        drawings[:], labels[:], rows[:] = block.drawings[part], block.labels[part], block.rows[part]

    def _shared_block(self, shard: int, number: int) -> Block:
        """A block that several lanes begin or end in, decoded once for all of them."""
        key = (shard, number)
        with self._lock:
            future = self._shared.get(key)
            mine = future is None
            if future is None:
                future = self._shared[key] = Future()
                while len(self._shared) > _SHARED_BLOCKS:
                    self._shared.popitem(last=False)
        if mine:
            try:
                future.set_result(self._decode(shard, number))
            except BaseException as error:
                with self._lock:
                    self._shared.pop(key, None)
                future.set_exception(error)
        return future.result()

    def _decode(self, shard: int, number: int, into: NDArray[np.uint8] | None = None) -> Block:
        """One block, checked against the manifest; read afresh once when it is wrong."""
        entry = self.shards[shard].blocks[number]
        trouble = ""
        for attempt in range(2):
            data = self._bytes(shard, entry.offset, entry.size)
            try:
                block = decode(data, entry.drawings, into)
                if block.crc == entry.crc32c:
                    return block
                trouble = f"contents crc32c {block.crc:08x}, the manifest says {entry.crc32c:08x}"
            except CorruptError as error:
                trouble = str(error)
            if attempt == 0 and self._cache is not None:
                self._cache.forget(self.shards[shard])
        url = storage.join(self._folder, self.shards[shard].name)
        raise CorruptError(
            f"{url}: block {number}: {trouble}; remove that shard and run make shard: it "
            "builds again what is missing"
        )

    def _bytes(self, shard: int, offset: int, size: int) -> bytes:
        url = storage.join(self._folder, self.shards[shard].name)
        try:
            return self._read_range(shard, url, offset, size)
        except FileNotFoundError:
            raise CorruptError(
                f"{url}: missing, though the manifest names it; run make shard again"
            ) from None

    def _read_range(self, shard: int, url: str, offset: int, size: int) -> bytes:
        entry = self.shards[shard]
        if self._cache is None:
            return storage.read_range(url, offset, size)
        while (path := self._cache.path(url, entry)) is not None:
            try:
                return storage.read_range(str(path), offset, size)
            except FileNotFoundError:
                continue  # evicted between the look and the opening
        return storage.read_range(url, offset, size)
