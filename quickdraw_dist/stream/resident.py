"""Resident mode: a rank's lanes stay in memory, and from then on an epoch is one gather a step.

On CUDA the drawings lie in device memory: the host only says which. The order is the same, from
the same `Order`, and proved by the same digest.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from quickdraw_dist.drawings import SIDE
from quickdraw_dist.errors import RefusedError
from quickdraw_dist.shards.blocks import Block
from quickdraw_dist.storage import Scratch
from quickdraw_dist.stream.ahead import ShardsAhead
from quickdraw_dist.stream.batch import Batch, room
from quickdraw_dist.stream.loader import TrainLoader
from quickdraw_dist.stream.memory import (
    RESIDENT_BYTES,
    RESIDENT_SHARE,
    LoaderMemory,
    resident_drawings,
)
from quickdraw_dist.stream.order import Order, Piece, rank_part
from quickdraw_dist.stream.reader import SplitReader

_FETCHERS = 4


class ResidentLoader:
    """Like `TrainLoader`, from drawings that are read once, before the first batch."""

    def __init__(
        self, reader: SplitReader, order: Order, memory: LoaderMemory, *, rank: int,
        world_size: int, local_world_size: int, device: torch.device,
    ) -> None:  # fmt: skip
        """Nothing is read yet. `memory` is for the batches, where they are not made on a device.

        Raises:
            RefusedError: the rank's lanes do not fit, with the arithmetic.
        """
        self.order, self.part = order, rank_part(order.global_batch, rank, world_size)
        self._reader, self._threads, self._device = reader, memory.threads, device
        self._show = rank == 0
        self._count = resident_drawings(order, *self.part)
        needed, usable = self._count * RESIDENT_BYTES, _room_bytes(device, local_world_size)
        ahead = memory.bytes if device.type == "cpu" else 0
        if needed + ahead > usable:
            raise RefusedError(
                f"--stream.resident true: this rank's lanes hold {self._count:,} drawings = "
                f"{needed / 1e9:.2f} GB, batches in the making {ahead / 1e9:.2f} GB "
                f"(--stream.memory_bytes), and {usable / 1e9:.2f} GB may be used "
                f"({RESIDENT_SHARE:.0%} of what a rank has on {device.type}); more ranks, or "
                "--stream.resident false, is right"
            )
        self._filled = False
        self._first: dict[tuple[int, int], int] = {}  # place of a block's first drawing
        self._drawings = torch.empty(0)
        self._labels = np.empty(0, np.uint16)
        self._rows = np.empty(0, np.uint32)
        self._scratch = Scratch()
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="plan")
        self._plans: dict[int, Future[NDArray[np.int64]]] = {}
        self._on_host: TrainLoader | None = None
        if device.type == "cpu":
            self._on_host = TrainLoader(
                self._held, order, memory, rank=rank, world_size=world_size, pin=False
            )

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Batches from `first_step` to the end of an epoch; reads all drawings the first time.

        Raises:
            CorruptError, StorageError: from a shard that could not be read; never skipped.
        """
        if not self._filled:
            self._fill()
        if self._on_host is not None:
            yield from self._on_host.epoch(epoch, first_step)
            return
        places = self._plan(epoch).result()
        self._plans = {epoch + 1: self._plan(epoch + 1)}
        index = torch.from_numpy(places).to(self._device)  # one copy an epoch, none a step
        for step in range(first_step, self.order.steps):
            drawings = torch.index_select(self._drawings, 0, index[step])
            labels = torch.from_numpy(self._labels[places[step]].astype(np.int64))
            yield Batch(step, drawings, labels, self._rows[places[step]])

    def _held(self, piece: Piece, _: Scratch) -> Block:
        """The drawings of a piece, on the host."""
        first = self._first[piece.shard, piece.block]
        part = slice(first + piece.start, first + piece.stop)
        return Block(self._drawings.numpy()[part], self._labels[part], self._rows[part])

    def _fill(self) -> None:
        """Read the rank's lanes from end to end."""
        self._drawings = _memory(self._count, self._device)
        self._labels = np.empty(self._count, np.uint16)
        self._rows = np.empty(self._count, np.uint32)
        lanes = [lane for lane, _, _ in self.order.segments(0, *self.part)]
        pieces = [piece for lane in lanes for piece in self.order.lane_pieces(lane)]
        bar = tqdm(
            total=self._count, unit=" drawings", unit_scale=True, desc="resident",
            disable=None if self._show else True, leave=False,
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
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        reading: deque[tuple[Piece, Future[None]]] = deque()
        place = 0
        try:
            for piece in pieces:
                if ahead is not None:
                    ahead.reach(piece.shard)
                # A lane that begins inside a block has a place for its part of it only.
                self._first.setdefault((piece.shard, piece.block), place - piece.start)
                reading.append((piece, pool.submit(self._load, piece, place, ahead)))
                place += len(piece)
                if len(reading) > 2 * self._threads:
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
        self._drawings[target] = torch.tensor(block.drawings)  # which is lent
        self._labels[target], self._rows[target] = block.labels, block.rows

    def _plan(self, epoch: int) -> Future[NDArray[np.int64]]:
        """Places of an epoch's drawings, (steps, drawings of this rank in a batch)."""
        return self._plans.get(epoch) or self._planner.submit(self._places, epoch)

    def _places(self, epoch: int) -> NDArray[np.int64]:
        order, (start, stop) = self.order, self.part
        places = np.empty((order.steps, stop - start), np.int64)
        at = 0
        for lane, low, high in order.segments(0, start, stop):
            line = np.concatenate(
                [
                    window.places(self._first[p.shard, p.block] for p in window.pieces)
                    for window in order.windows(epoch, lane)
                ]
            )
            shares = line[: order.steps * order.lane_batch].reshape(order.steps, order.lane_batch)
            places[:, at : at + high - low] = shares[:, low:high]
            at += high - low
        return places


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
