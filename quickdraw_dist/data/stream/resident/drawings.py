"""The drawings of a rank's lanes, read once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from quickdraw_dist.base.storage import Scratch
from quickdraw_dist.data.order.content_bytes import content_bytes
from quickdraw_dist.data.order.memory import (
    LoaderMemory,
    check_resident,
    resident_drawings,
    resident_limit,
)
from quickdraw_dist.data.order.order import Order, Piece
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.stream.prefetch import ShardPrefetch, decoding_threads, map_ahead
from quickdraw_dist.data.stream.reader import SplitReader
from quickdraw_dist.data.stream.resident.memory import (
    ResidentBitmaps,
    ResidentMemory,
    ResidentStrokes,
)

_FETCHERS = 4


class ResidentDrawings:
    """All drawings of a rank's lanes, lane after lane in the order of the line."""

    def __init__(
        self, reader: SplitReader, order: Order, share: Share, memory: LoaderMemory, *,
        local_world_size: int, device: torch.device,
    ) -> None:  # fmt: skip
        """Check that the drawings fit on `device`, together with the batches' `memory` if it is the
        host, whose memory the node's ranks divide. Nothing is read.

        Raises:
            RefusedError: the rank's lanes do not fit, with the arithmetic.
        """
        self.order, self.share, self.memory, self.device = order, share, memory, device
        self._reader, self.per_drawing = reader, reader.per_drawing
        check_resident(
            order,
            share,
            content_bytes(reader.per_drawing),
            limit_bytes=resident_limit(_rank_bytes(device, local_world_size)),
            memory=f"a rank's memory on {device.type}",
            batches_bytes=memory.bytes if device.type == "cpu" else 0,
        )
        self.drawings: ResidentMemory
        self.labels = np.empty(0, np.uint16)  # (n,)
        self.rows = np.empty(0, np.uint32)  # (n,)
        self._block_starts: dict[tuple[int, int], int] = {}
        self._filled = False
        self._scratch = Scratch()

    def range_of(self, piece: Piece) -> tuple[int, int]:
        """Return the indices [start, stop) of a piece's drawings in the arrays."""
        first = self._block_starts[piece.shard, piece.block]
        return first + piece.start, first + piece.stop

    def fill(self) -> None:
        """Read all drawings of the rank's lanes, if that has not been done.

        Raises:
            CorruptError, StorageError: a shard could not be read; the next call reads all again.
        """
        if self._filled:
            return
        count = resident_drawings(self.order, self.share)
        self.drawings = (
            ResidentBitmaps(count, self.device)
            if self.per_drawing is None
            else ResidentStrokes(count, self.per_drawing, self.device)
        )
        self.labels = np.empty(count, np.uint16)
        self.rows = np.empty(count, np.uint32)
        pieces = [piece for lane in self.share.lanes for piece in self.order.lane_pieces(lane)]
        bar = tqdm(
            total=count, unit=" drawings", unit_scale=True, desc="resident",
            disable=True if self.share.start else None, leave=False,  # the first rank shows it
        )  # fmt: skip
        with bar:
            for drawings in self._read(pieces):
                bar.update(drawings)
        self._filled = True

    def _read(self, pieces: list[Piece]) -> Iterator[int]:
        """Read every piece into the arrays; yield its drawings when it and all before it are in."""
        shards = None
        if (cache := self._reader.cache) is not None:
            needed = (piece.shard for piece in pieces)
            shards = ShardPrefetch(self._reader, cache, needed, _FETCHERS, _FETCHERS)

        def placed() -> Iterator[tuple[Piece, int]]:
            at = 0
            for piece in pieces:
                if shards is not None:
                    shards.reach(piece.shard)
                # Virtual where a lane begins inside the block: only the lane's piece is held.
                self._block_starts.setdefault((piece.shard, piece.block), at - piece.start)
                yield piece, at
                at += len(piece)

        def load(item: tuple[Piece, int]) -> int:
            piece, at = item
            if shards is not None:
                shards.wait(piece.shard)
            block = self._reader.piece(piece, self._scratch)
            target = slice(at, at + len(piece))
            self.drawings.put(at, block)
            self.labels[target], self.rows[target] = block.labels, block.rows
            return len(piece)

        threads = self.memory.threads
        with decoding_threads(threads, shards) as pool:
            yield from map_ahead(pool, load, placed(), 2 * threads)


def _rank_bytes(device: torch.device, local_world_size: int) -> int:
    """Return a rank's memory: what is free on its CUDA device, or its equal part of the host's or
    the container's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total // local_world_size
