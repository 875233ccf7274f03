"""Batches of a split for evaluation: a rank's contiguous range, every drawing exactly once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.data.order.order import evaluation_pieces
from quickdraw_dist.data.stream.batch import Batch, allocate
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
    left = sum(len(piece) for piece in pieces)
    number, filled = 0, 0
    drawings, labels, rows = _allocate(min(batch, left), pin)
    with decoding_threads(threads, None) as pool:
        for block in map_ahead(pool, reader.piece, pieces, 2 * threads):
            done = 0
            while done < len(block.labels):
                count = min(len(labels) - filled, len(block.labels) - done)
                target, source = slice(filled, filled + count), block.slice(done, done + count)
                drawings.numpy()[target] = source.drawings
                labels.numpy()[target] = source.labels
                rows[target] = source.rows
                done, filled, left = done + count, filled + count, left - count
                if filled == len(labels):
                    yield Batch(number, drawings, labels, rows)
                    number, filled = number + 1, 0
                    drawings, labels, rows = _allocate(min(batch, left), pin)


def _allocate(count: int, pin: bool) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.uint32]]:
    return *allocate(count, pin), np.empty(count, np.uint32)
