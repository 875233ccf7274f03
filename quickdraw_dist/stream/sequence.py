"""Evaluation: a rank's contiguous part of a split, every drawing exactly once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.drawings import SIDE
from quickdraw_dist.stream.batch import Batch, room
from quickdraw_dist.stream.order import Piece, sequential
from quickdraw_dist.stream.reader import SplitReader

_Part = tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint32]]


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
    for part in _decoded(reader, pieces, threads):
        done = 0
        while done < len(part[1]):
            step = min(len(labels) - filled, len(part[1]) - done)
            into, source = slice(filled, filled + step), slice(done, done + step)
            drawings.numpy()[into] = part[0][source]
            labels.numpy()[into] = part[1][source]
            rows[into] = part[2][source]
            done, filled, left = done + step, filled + step, left - step
            if filled == len(labels):
                yield Batch(number, drawings, labels, rows, digest=0)
                number, filled = number + 1, 0
                drawings, labels, rows = _room(min(batch, left))


def _room(count: int) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.uint32]]:
    return *room(count, pin=False), np.empty(count, np.uint32)


def _decoded(reader: SplitReader, pieces: list[Piece], threads: int) -> Iterator[_Part]:
    """Every piece, decoded by threads a little ahead."""

    def load(piece: Piece) -> _Part:
        count = reader.block_counts[piece.shard][piece.block]
        drawings = np.empty((count, SIDE, SIDE), np.uint8)
        labels, rows = np.empty(count, np.uint16), np.empty(count, np.uint32)
        reader.read(piece.shard, piece.block, drawings, labels, rows)
        part = slice(piece.start, piece.stop)
        return drawings[part], labels[part], rows[part]

    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    ahead: deque[Future[_Part]] = deque()
    try:
        for piece in pieces:
            ahead.append(pool.submit(load, piece))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
