"""Resident mode: a rank's drawings are read once and stay in memory, the device's or the host's."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.storage import Scratch
from quickdraw_dist.base.units import size_text
from quickdraw_dist.data.drawings.drawing import SIDE
from quickdraw_dist.data.order.memory import (
    RESIDENT_BYTES,
    RESIDENT_SHARE,
    LoaderMemory,
    resident_drawings,
)
from quickdraw_dist.data.order.order import Order, Piece
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.batch import room
from quickdraw_dist.data.stream.prefetch import ShardsAhead
from quickdraw_dist.data.stream.reader import SplitReader

_FETCHERS = 4


class ResidentDrawings:
    """All drawings of a rank's lanes, lane after lane in the order of the line."""

    def __init__(
        self, reader: SplitReader, order: Order, part: tuple[int, int], memory: LoaderMemory, *,
        local_world_size: int, device: torch.device,
    ) -> None:  # fmt: skip
        """Nothing is read yet. `part` is the rank's of every global batch; `memory` is for batches
        that are made on the host.

        Raises:
            RefusedError: the rank's lanes do not fit, with the arithmetic.
        """
        self.order, self.part, self.memory, self.device = order, part, memory, device
        self._reader = reader
        self._count = resident_drawings(order, *part)
        needed, usable = self._count * RESIDENT_BYTES, _room_bytes(device, local_world_size)
        ahead = memory.bytes if device.type == "cpu" else 0
        if needed + ahead > usable:
            raise RefusedError(
                f"--stream.resident true: this rank's lanes hold {self._count:,} drawings = "
                f"{size_text(needed)}, batches in the making {size_text(ahead)} "
                f"(--stream.memory_bytes), and {size_text(usable)} may be used "
                f"({RESIDENT_SHARE:.0%} of what a rank has on {device.type}); more ranks, or "
                "--stream.resident false, is right"
            )
        self.first: dict[tuple[int, int], int] = {}
        """Place of a block's first drawing: a virtual one where a lane begins inside the block."""
        self.drawings = torch.empty(0)  # (n, 28, 28) uint8, on the device
        self.labels = np.empty(0, np.uint16)  # (n,)
        self.rows = np.empty(0, np.uint32)  # (n,)
        self._filled = False
        self._scratch = Scratch()

    def piece(self, piece: Piece, _: Scratch) -> Block:
        """The drawings of a piece, on the host, without a copy."""
        first = self.first[piece.shard, piece.block]
        part = slice(first + piece.start, first + piece.stop)
        return Block(self.drawings.numpy()[part], self.labels[part], self.rows[part])

    def fill(self) -> None:
        """Read the rank's lanes from end to end, if that is not done yet.

        Raises:
            CorruptError, StorageError: from a shard that could not be read.
        """
        if self._filled:
            return
        self.drawings = _memory(self._count, self.device)
        self.labels = np.empty(self._count, np.uint16)
        self.rows = np.empty(self._count, np.uint32)
        lanes = [lane for lane, _, _ in self.order.segments(0, *self.part)]
        pieces = [piece for lane in lanes for piece in self.order.lane_pieces(lane)]
        bar = tqdm(
            total=self._count, unit=" drawings", unit_scale=True, desc="resident",
            disable=True if self.part[0] else None, leave=False,  # the first rank's is shown
        )  # fmt: skip
        with bar:
            for piece in self._read(pieces):
                bar.update(len(piece))
        self._filled = True

    def _read(self, pieces: list[Piece]) -> Iterator[Piece]:
        """Every piece, as soon as it and those before it are in place."""
        ahead = None
        if (cache := self._reader.cache) is not None:
            shards = (piece.shard for piece in pieces)
            ahead = ShardsAhead(self._reader, cache, shards, _FETCHERS, _FETCHERS)
        pool = ThreadPoolExecutor(self.memory.threads, thread_name_prefix="decode")
        reading: deque[tuple[Piece, Future[None]]] = deque()
        place = 0
        try:
            for piece in pieces:
                if ahead is not None:
                    ahead.reach(piece.shard)
                # A lane that begins inside a block has a place for its part of it only.
                self.first.setdefault((piece.shard, piece.block), place - piece.start)
                reading.append((piece, pool.submit(self._load, piece, place, ahead)))
                place += len(piece)
                if len(reading) > 2 * self.memory.threads:
                    done, future = reading.popleft()
                    future.result()
                    yield done
            for done, future in reading:
                future.result()
                yield done
        finally:
            if ahead is not None:
                ahead.close()
            pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, piece: Piece, place: int, ahead: ShardsAhead | None) -> None:
        if ahead is not None:
            ahead.wait(piece.shard)
        block = self._reader.piece(piece, self._scratch)
        target = slice(place, place + len(piece))
        self.drawings[target] = torch.tensor(block.drawings)  # which is lent
        self.labels[target], self.rows[target] = block.labels, block.rows


def _memory(count: int, device: torch.device) -> torch.Tensor:
    """Room for drawings, (count, 28, 28) uint8."""
    if device.type == "cpu":
        return room(count, pin=False)[0]
    return torch.empty((count, SIDE, SIDE), dtype=torch.uint8, device=device)


def _room_bytes(device: torch.device, local_world_size: int) -> int:
    """Memory that a rank's drawings may take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * RESIDENT_SHARE)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's; where there is one
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        there = min(there, int(text))
    return int(there * RESIDENT_SHARE) // local_world_size
