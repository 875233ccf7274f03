"""Batches of a split for evaluation: a rank's contiguous range, every drawing exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from quickdraw_dist.data.drawings.strokes.tiles import TilesPerDrawing, pack
from quickdraw_dist.data.order.order import evaluation_pieces
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.batch import Batch, StrokeBatch, allocate
from quickdraw_dist.data.stream.prefetch import decoding_threads, map_ahead
from quickdraw_dist.data.stream.reader import SplitReader


def evaluation_batches(
    reader: SplitReader, *, rank: int, world_size: int, batch: int, threads: int, pin: bool = False
) -> Iterator[Batch]:
    """Yield a rank's range of a split in batches of `batch` drawings, the last one shorter.

    Every batch has memory of its own, pinned for CUDA if `pin`.

    Raises:
        CorruptError, StorageError: a block could not be read; none is skipped.
    """
    pieces = evaluation_pieces(reader.block_counts, rank, world_size)
    number, count, parts = 0, 0, list[Block]()  # of the batch being put together
    with decoding_threads(threads, None) as pool:
        for block in map_ahead(pool, reader.piece, pieces, 2 * threads):
            done = 0
            while done < len(block.labels):
                taken = min(batch - count, len(block.labels) - done)
                parts.append(block.slice(done, done + taken))
                done, count = done + taken, count + taken
                if count == batch:
                    yield collate(number, parts, reader.per_drawing, pin)
                    number, count, parts = number + 1, 0, []
    if parts:
        yield collate(number, parts, reader.per_drawing, pin)


def collate(
    number: int, parts: Sequence[Block], per_drawing: TilesPerDrawing | None, pin: bool
) -> Batch:
    """Return batch `number`, of the drawings in `parts`, end to end. `per_drawing` is of a dataset
    of strokes; None for bitmaps."""
    rows = np.concatenate([part.rows for part in parts])
    drawings: torch.Tensor | StrokeBatch
    if per_drawing is None:
        drawings, labels = allocate(len(rows), pin)
        np.concatenate([part.pixels for part in parts], out=drawings.numpy())
    else:
        memory = StrokeBatch.allocate(len(rows), per_drawing, pin)
        drawings = memory.filled([pack(part.strokes) for part in parts])
        labels = torch.empty(len(rows), dtype=torch.int64, pin_memory=pin)
    np.concatenate([part.labels for part in parts], out=labels.numpy())
    return Batch(number, drawings, labels, rows)
