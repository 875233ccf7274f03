"""The batch that every loader yields: one rank's share of one global batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.data.drawings.drawing import SIDE
from quickdraw_dist.data.drawings.strokes.arrays import ends
from quickdraw_dist.data.drawings.strokes.tiles import TILE, Tiles, TilesPerDrawing, tile_counts


@dataclass(frozen=True)
class StrokeBatch:
    """n drawings in T tiles of 16 segments, on the host or a device.

    T is `per_drawing.capacity(n)`, the same for every batch of n drawings, so that a compiled step
    meets one shape; a batch that needs more has twice as many, or four times. Nothing is cut.
    """

    tiles: torch.Tensor  # (T, 16, 4) uint8: x1, y1, x2, y2; a drawing's are consecutive rows
    counts: torch.Tensor  # (n,) int32: segments per drawing, without repetitions; 0: blank
    recognized: torch.Tensor  # (n,) uint8: as in `Strokes`
    first: NDArray[np.int64]  # (n + 1,): where each drawing's tiles begin; on the host
    per_drawing: TilesPerDrawing  # of the dataset

    @classmethod
    def allocate(cls, drawings: int, per_drawing: TilesPerDrawing, pin: bool) -> StrokeBatch:
        """Return memory for batches of `drawings`, which are blank until it is filled; pinned for
        asynchronous copies to a CUDA device if `pin`."""
        tiles = _allocate_tiles(per_drawing.capacity(drawings), pin)
        counts = torch.zeros(drawings, dtype=torch.int32, pin_memory=pin)
        recognized = torch.zeros(drawings, dtype=torch.uint8, pin_memory=pin)
        return cls(tiles, counts, recognized, np.zeros(drawings + 1, np.int64), per_drawing)

    def filled(self, parts: Sequence[Tiles]) -> StrokeBatch:
        """Return the batch of the drawings of `parts`, n in all, in this batch's memory; with tiles
        in memory of its own where they are more than fit."""
        np.concatenate([part.counts for part in parts], out=self.counts.numpy())
        np.concatenate([part.recognized for part in parts], out=self.recognized.numpy())
        first = ends(tile_counts(self.counts.numpy()))
        tiles, needed = self.tiles, int(first[-1])
        if needed > len(tiles):
            capacity = self.per_drawing.capacity(len(self), needed)
            tiles = _allocate_tiles(capacity, self.tiles.is_pinned())
        np.concatenate([part.segments for part in parts], out=tiles.numpy()[:needed])
        return StrokeBatch(tiles, self.counts, self.recognized, first, self.per_drawing)

    def __len__(self) -> int:
        """Return the number of drawings."""
        return len(self.counts)

    @property
    def owners(self) -> torch.Tensor:
        """Index in the batch of the drawing that each tile belongs to, (T,) int64; n, that of a
        spare picture, for unused tiles."""
        return self._owners_and_numbers[0]

    @property
    def numbers(self) -> torch.Tensor:
        """Number of each tile's first segment within its drawing, (T,) int32: 0, 16, 32, ..."""
        return self._owners_and_numbers[1]

    @cached_property
    def _owners_and_numbers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Computed where the batch lies and on the stream that needs them, once: less is copied.
        The host does not wait for the device."""
        begins = torch.nn.functional.pad(((self.counts + (TILE - 1)) // TILE).cumsum(0), (1, 0))
        rows = torch.arange(len(self.tiles), device=self.counts.device)
        owners = torch.searchsorted(begins[1:], rows, right=True)
        within = torch.where(owners < len(self), rows - begins[owners], 0)
        return owners, (within * TILE).int()

    def inputs(self) -> tuple[torch.Tensor, ...]:
        """Return what a network's input layer takes: tiles, owners, numbers, counts, recognized."""
        return self.tiles, self.owners, self.numbers, self.counts, self.recognized

    def to(self, device: torch.device, *, non_blocking: bool = False) -> StrokeBatch:
        """Return the batch on a device, itself if it is there; see `torch.Tensor.to`."""
        tiles = self.tiles.to(device, non_blocking=non_blocking)
        if tiles is self.tiles:
            return self
        return StrokeBatch(
            tiles,
            self.counts.to(device, non_blocking=non_blocking),
            self.recognized.to(device, non_blocking=non_blocking),
            self.first,
            self.per_drawing,
        )

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory until `stream` has done what was submitted to it; see
        `torch.Tensor.record_stream`."""
        for tensor in (self.tiles, self.counts, self.recognized):
            tensor.record_stream(stream)

    def tensor_split(self, parts: int) -> tuple[StrokeBatch, ...]:
        """Return the drawings in `parts` batches of the sizes that `torch.Tensor.tensor_split`
        makes, each with the tiles of a batch of its size."""
        if parts == 1:
            return (self,)
        least, more = divmod(len(self), parts)
        starts = ends(np.array([least + (part < more) for part in range(parts)]))
        return tuple(map(self._part, starts[:-1].tolist(), starts[1:].tolist()))

    def _part(self, start: int, stop: int) -> StrokeBatch:
        first = self.first[start : stop + 1]
        begin, needed = int(first[0]), int(first[-1] - first[0])
        capacity = self.per_drawing.capacity(stop - start, needed)
        tiles = self.tiles[begin : begin + capacity]  # those of the next drawings are unused tiles
        if missing := capacity - len(tiles):
            tiles = torch.nn.functional.pad(tiles, (0, 0, 0, 0, 0, missing))
        own = slice(start, stop)
        return StrokeBatch(
            tiles, self.counts[own], self.recognized[own], first - begin, self.per_drawing
        )


def _allocate_tiles(count: int, pin: bool) -> torch.Tensor:
    """Return uninitialised tiles, (count, 16, 4) uint8."""
    shape = (count, TILE, 4)
    # numpy requests huge pages, which speed up writes.
    return (
        torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        if pin
        else torch.from_numpy(np.empty(shape, np.uint8))
    )


@dataclass
class Batch:
    """Drawings, labels and rows of one step, n drawings.

    A training loader reuses the memory: see Ownership in `stream/ring`. Valid until two more
    batches have been requested, as the copy to the device runs one batch ahead of the step.
    """

    step: int  # in the epoch
    drawings: torch.Tensor | StrokeBatch  # of bitmaps (n, 28, 28) uint8, pinned when asked for
    labels: torch.Tensor  # (n,) int64
    rows: NDArray[np.uint32]  # (n,): with the labels, the drawings' identities
    copied: torch.cuda.Event | None = None  # set by an asynchronous consumer: done reading


def noise(count: int, per_drawing: TilesPerDrawing | None) -> torch.Tensor | StrokeBatch:
    """Return drawings of noise on the host, for passes that count for nothing: bitmaps, or strokes
    where `per_drawing` is that of their dataset."""
    if per_drawing is None:
        return torch.randint(256, (count, SIDE, SIDE), dtype=torch.uint8)
    capacity = per_drawing.capacity(count)
    tiles = torch.randint(256, (capacity, TILE, 4), dtype=torch.uint8)
    each = int(per_drawing.mean)  # what fits a micro-batch of any size: its shape is the usual one
    counts = torch.full((count,), each * TILE, dtype=torch.int32)
    recognized = torch.zeros(count, dtype=torch.uint8)
    return StrokeBatch(tiles, counts, recognized, np.arange(count + 1) * each, per_drawing)


def allocate(count: int, pin: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uninitialised drawings (count, 28, 28) uint8 and labels (count,) int64, in pinned
    memory if `pin`, for asynchronous copies to a CUDA device."""
    if not pin:  # numpy requests huge pages, which speed up writes at scattered addresses
        drawings = torch.from_numpy(np.empty((count, SIDE, SIDE), np.uint8))
        return drawings, torch.empty(count, dtype=torch.int64)
    return (
        torch.empty((count, SIDE, SIDE), dtype=torch.uint8, pin_memory=True),
        torch.empty(count, dtype=torch.int64, pin_memory=True),
    )
