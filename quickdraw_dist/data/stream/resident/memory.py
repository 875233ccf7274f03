"""Memory of resident drawings, on the device or the host: bitmaps, or tiles of strokes."""

from __future__ import annotations

from threading import Lock
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.data.drawings.drawing import SIDE
from quickdraw_dist.data.drawings.strokes.arrays import ends
from quickdraw_dist.data.drawings.strokes.tiles import (
    TILE,
    TilesPerDrawing,
    pack,
    tile_counts,
)
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.batch import StrokeBatch, allocate


class ResidentMemory(Protocol):
    """n drawings, numbered from 0."""

    def put(self, first: int, block: Block) -> None:
        """Copy a block's drawings to the numbers from `first` on; threads may do so at once."""

    def batch(
        self, numbers: NDArray[np.int64], on_device: torch.Tensor
    ) -> torch.Tensor | StrokeBatch:
        """Return a copy of the drawings of these numbers, (b,), on the device, when all have been
        put. `on_device` are the same numbers; the host does not wait for the device."""


class ResidentBitmaps:
    """Pixels, 784 bytes per drawing."""

    def __init__(self, count: int, device: torch.device) -> None:
        """Allocate memory for `count` drawings."""
        if device.type == "cpu":
            self.pixels = allocate(count, pin=False)[0]
        else:
            self.pixels = torch.empty((count, SIDE, SIDE), dtype=torch.uint8, device=device)

    def put(self, first: int, block: Block) -> None:
        """See `ResidentMemory.put`."""
        # A copy: the block lies in memory that is reused, and may be read-only.
        self.pixels[first : first + len(block.rows)] = torch.tensor(block.pixels)

    def batch(self, numbers: NDArray[np.int64], on_device: torch.Tensor) -> torch.Tensor:
        """See `ResidentMemory.batch`."""
        return torch.index_select(self.pixels, 0, on_device)


class ResidentStrokes:
    """Tiles, block after block as they were read, and where each drawing's begin."""

    def __init__(self, count: int, per_drawing: TilesPerDrawing, device: torch.device) -> None:
        """Allocate memory for as many tiles as `count` drawings of the dataset should have."""
        self._per_drawing, self._device = per_drawing, device
        self._tiles = self._allocate(per_drawing.capacity(count))
        self._used = 0
        self._lock = Lock()
        self._counts = np.zeros(count, np.int32)  # says how many tiles a batch needs
        # What a step gathers of each drawing: where its tiles begin, segments, recognized.
        self._on_device = tuple(
            torch.zeros(count, dtype=dtype, device=device)
            for dtype in (torch.int64, torch.int32, torch.uint8)
        )

    def _allocate(self, tiles: int) -> torch.Tensor:
        # One more than the drawings need: unused tiles of a batch are copies of the first one.
        return torch.empty((tiles + 1, TILE, 4), dtype=torch.uint8, device=self._device)

    def put(self, first: int, block: Block) -> None:
        """See `ResidentMemory.put`."""
        packed, numbers = pack(block.strokes), slice(first, first + len(block.rows))
        self._counts[numbers] = packed.counts
        with self._lock:
            at, self._used = self._used, self._used + len(packed.segments)
            if self._used >= len(self._tiles):
                self._grow(at)
            self._tiles[at : self._used] = torch.from_numpy(packed.segments)
        values = packed.first[:-1] + at, packed.counts, packed.recognized
        for tensor, value in zip(self._on_device, values, strict=True):
            tensor[numbers] = torch.from_numpy(value)

    def _grow(self, used: int) -> None:
        """Move the tiles to memory with room for `_used`: the drawings are longer than the rest of
        the dataset."""
        larger = self._allocate(self._per_drawing.capacity(len(self._counts), self._used))
        larger[:used] = self._tiles[:used]
        self._tiles = larger

    def batch(self, numbers: NDArray[np.int64], on_device: torch.Tensor) -> StrokeBatch:
        """See `ResidentMemory.batch`."""
        first = ends(tile_counts(self._counts[numbers]))
        capacity = self._per_drawing.capacity(len(numbers), int(first[-1]))
        begins, counts, recognized = (
            torch.index_select(tensor, 0, on_device) for tensor in self._on_device
        )
        tiles = self._tiles.new_empty((capacity, TILE, 4))
        batch = StrokeBatch(tiles, counts, recognized, first, self._per_drawing)
        rows = torch.nn.functional.pad(begins, (0, 1))[batch.owners] + batch.numbers // TILE
        torch.index_select(self._tiles, 0, rows, out=tiles)
        return batch
