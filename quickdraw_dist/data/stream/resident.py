"""Resident mode: a rank reads the drawings of its lanes once and keeps them in memory, the
device's or the host's. The order is that of the streaming loader, proved by the same digest.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from quickdraw_dist.base.storage import Scratch
from quickdraw_dist.data.drawings.drawing import SIDE
from quickdraw_dist.data.order.memory import (
    LoaderMemory,
    check_resident,
    resident_drawings,
    resident_limit,
)
from quickdraw_dist.data.order.order import Order, Piece
from quickdraw_dist.data.order.schedule import schedule
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.batch import Batch, allocate
from quickdraw_dist.data.stream.loader import TrainLoader
from quickdraw_dist.data.stream.prefetch import ShardPrefetch, decoding_threads, map_ahead
from quickdraw_dist.data.stream.reader import SplitReader
from quickdraw_dist.data.stream.ring import RingIndex

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
        self._reader = reader
        check_resident(
            order,
            share,
            limit_bytes=resident_limit(_rank_bytes(device, local_world_size)),
            memory=f"a rank's memory on {device.type}",
            batches_bytes=memory.bytes if device.type == "cpu" else 0,
        )
        self.drawings = torch.empty(0)  # (n, 28, 28) uint8, on the device
        self.labels = np.empty(0, np.uint16)  # (n,)
        self.rows = np.empty(0, np.uint32)  # (n,)
        self._block_starts: dict[tuple[int, int], int] = {}
        self._filled = False
        self._scratch = Scratch()

    def range_of(self, piece: Piece) -> tuple[int, int]:
        """Return the indices [start, stop) of a piece's drawings in the arrays."""
        first = self._block_starts[piece.shard, piece.block]
        return first + piece.start, first + piece.stop

    def piece(self, piece: Piece, _: Scratch) -> Block:
        """Return the drawings of a piece, on the host, without a copy."""
        held = slice(*self.range_of(piece))
        return Block(self.drawings.numpy()[held], self.labels[held], self.rows[held])

    def fill(self) -> None:
        """Read all drawings of the rank's lanes, if that has not been done.

        Raises:
            CorruptError, StorageError: a shard could not be read; the next call reads all again.
        """
        if self._filled:
            return
        count = resident_drawings(self.order, self.share)
        self.drawings = _allocate(count, self.device)
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
            self.drawings[target] = torch.tensor(block.drawings)  # a copy: the scratch is reused
            self.labels[target], self.rows[target] = block.labels, block.rows
            return len(piece)

        threads = self.memory.threads
        with decoding_threads(threads, shards) as pool:
            yield from map_ahead(pool, load, placed(), 2 * threads)


class HostLoader(TrainLoader):
    """Makes batches from the host's memory, window by window like the streaming loader: faster
    than gathering each batch from addresses all over the memory."""

    def __init__(self, resident: ResidentDrawings) -> None:
        super().__init__(resident.piece, resident.order, resident.share, resident.memory, pin=False)
        self._resident = resident

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Like `TrainLoader.epoch`; the first call reads all drawings."""
        self._resident.fill()
        yield from super().epoch(epoch, first_step)


class DeviceLoader:
    """Makes batches on the device: a step is one gather there; the host only says of what."""

    def __init__(self, resident: ResidentDrawings) -> None:
        self.order, self.share, self._resident = resident.order, resident.share, resident
        self._ring_index = RingIndex(self.order, self.share, self.order.steps)
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="plan")
        self._plans: dict[int, Future[NDArray[np.int64]]] = {}

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Like `TrainLoader.epoch`; the first call reads all drawings."""
        resident = self._resident
        resident.fill()
        indices = self._plan(epoch).result()
        self._plans = {epoch + 1: self._plan(epoch + 1)}
        on_device = torch.from_numpy(indices).to(resident.device)  # one copy per epoch
        pin = resident.device.type == "cuda"
        for step in range(first_step, self.order.steps):
            drawings = torch.index_select(resident.drawings, 0, on_device[step])
            # Pinned for the copy to the device; torch reuses it only once that copy is done.
            labels = torch.empty(self.share.drawings, dtype=torch.int64, pin_memory=pin)
            labels.numpy()[:] = resident.labels[indices[step]]
            yield Batch(step, drawings, labels, resident.rows[indices[step]])

    def _plan(self, epoch: int) -> Future[NDArray[np.int64]]:
        return self._plans.get(epoch) or self._planner.submit(self._indices, epoch)

    def _indices(self, epoch: int) -> NDArray[np.int64]:
        """Return where an epoch's drawings lie in the resident arrays, (steps, share.drawings).

        The epoch is laid out like a ring with a slot for every step."""
        indices = np.empty(self._ring_index.spare + 1, np.int64)
        for scheduled in schedule(self.order, self.share, epoch, 0):
            ranges = map(self._resident.range_of, scheduled.window.pieces)
            held = [np.arange(start, stop, dtype=np.int64) for start, stop in ranges]
            indices[self._ring_index.of(scheduled, 0)] = np.concatenate(held)
        return indices[:-1].reshape(self.order.steps, self.share.drawings)


def _allocate(count: int, device: torch.device) -> torch.Tensor:
    """Return uninitialised drawings, (count, 28, 28) uint8."""
    if device.type == "cpu":
        return allocate(count, pin=False)[0]
    return torch.empty((count, SIDE, SIDE), dtype=torch.uint8, device=device)


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
