"""The batch that every loader yields: one rank's share of one global batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.data.drawings.drawing import SIDE
from quickdraw_dist.data.drawings.strokes.tiles import TILE, TilesPerDrawing
from quickdraw_dist.data.stream.stroke_batch import StrokeBatch


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
    each = capacity // count
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
