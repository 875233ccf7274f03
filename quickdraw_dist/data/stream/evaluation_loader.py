"""Evaluation: a rank's contiguous part of a split, every drawing exactly once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.data.order.order import Piece, sequential
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.batch import Batch, room
from quickdraw_dist.data.stream.reader import SplitReader


def evaluation_batches(
    reader: SplitReader, *, rank: int, world_size: int, batch: int, threads: int
) -> Iterator[Batch]:
    """A rank's part of a split in batches of `batch` drawings, the last one of what is left.

    Raises:
        CorruptError, StorageError: from a block that could not be read; never skipped.
    """
    pieces = sequential(reader.block_counts, rank, world_size)
    left = sum(len(piece) for piece in pieces)
    number, filled = 0, 0
    drawings, labels, rows = _room(min(batch, left))
    for block in _decoded(reader, pieces, threads):
        done = 0
        while done < len(block.labels):
            step = min(len(labels) - filled, len(block.labels) - done)
            into, part = slice(filled, filled + step), block.slice(done, done + step)
            drawings.numpy()[into] = part.drawings
            labels.numpy()[into] = part.labels
            rows[into] = part.rows
            done, filled, left = done + step, filled + step, left - step
            if filled == len(labels):
                yield Batch(number, drawings, labels, rows)
                number, filled = number + 1, 0
                drawings, labels, rows = _room(min(batch, left))


def _room(count: int) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.uint32]]:
    return *room(count, pin=False), np.empty(count, np.uint32)


def _decoded(reader: SplitReader, pieces: list[Piece], threads: int) -> Iterator[Block]:
    """Every piece, decoded by threads a little ahead."""

    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    ahead: deque[Future[Block]] = deque()
    try:
        for piece in pieces:
            ahead.append(pool.submit(reader.piece, piece))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
