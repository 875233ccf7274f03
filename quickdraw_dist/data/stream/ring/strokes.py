"""The ring of strokes: windows of tiles, and the batches that are made of them.

A decoding thread packs a window's drawings into tiles and lays them out in the order of delivery,
without those that this rank does not deliver. So a batch is the next few drawings of each lane's
first window, laid end to end: a few large copies. A window is dropped with its last drawing.

Windows of at most `steps` batches and one window's batches more are held at once
(`order/content_bytes.py` counts them), and as many batches as may be in use.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.data.drawings.strokes.tiles import Tiles, TilesPerDrawing, pack
from quickdraw_dist.data.order.content_bytes import BATCHES_IN_USE
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.schedule import ScheduledWindow
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.batch import Batch, StrokeBatch


class _Window:
    """The drawings of a window that the rank delivers, in order of delivery."""

    def __init__(
        self, start: int, tiles: Tiles, labels: NDArray[np.uint16], rows: NDArray[np.uint32]
    ) -> None:
        self.start = start  # of the window, in its lane
        self._tiles, self._labels, self._rows = tiles, labels, rows
        self._taken = 0

    @property
    def left(self) -> int:
        """Drawings that have not been taken."""
        return len(self._tiles) - self._taken

    def take(self, count: int) -> tuple[Tiles, NDArray[np.uint16], NDArray[np.uint32]]:
        """Return the next drawings with their labels and rows, without a copy of segments."""
        start, self._taken = self._taken, self._taken + count
        own = slice(start, self._taken)
        return self._tiles.slice(start, self._taken), self._labels[own], self._rows[own]


class StrokeRing:
    """A ring of drawings as strokes."""

    def __init__(
        self, order: Order, share: Share, steps: int, per_drawing: TilesPerDrawing, pin: bool
    ) -> None:
        """Allocate the batches in use, pinned for CUDA if `pin`."""
        self.steps, self._first_step = steps, 0
        self._order, self._share = order, share
        self._windows: dict[int, list[_Window]] = {}  # by lane
        self._lock = Lock()
        count = share.drawings
        self._slots = [
            (
                StrokeBatch.allocate(count, per_drawing, pin),
                torch.empty(count, dtype=torch.int64, pin_memory=pin),
                np.empty(count, np.uint32),
            )
            for _ in range(BATCHES_IN_USE)
        ]

    def begin(self, first_step: int) -> None:
        """See `Ring.begin`."""
        self._first_step = first_step
        self._windows = {lane: [] for lane in self._share.lanes}

    def put(self, scheduled: ScheduledWindow, blocks: Iterator[Block]) -> None:
        """See `Ring.put`."""
        tiles, labels, rows = [], [], []
        for block in blocks:
            tiles.append(pack(block.strokes))
            labels.append(block.labels.copy())  # the next read reuses the memory
            rows.append(block.rows.copy())
        chosen = delivered(self._order, self._share, scheduled, self._first_step)
        window = _Window(
            scheduled.window.start,
            Tiles.concatenate(tiles).take(chosen),
            np.concatenate(labels)[chosen],
            np.concatenate(rows)[chosen],
        )
        with self._lock:
            insort(self._windows[scheduled.lane], window, key=lambda it: it.start)

    def batch(self, step: int) -> Batch:
        """See `Ring.batch`. The drawings are copied from their windows."""
        memory, labels, rows = self._slots[step % BATCHES_IN_USE]
        parts = [part for lane in self._share.lanes for part in self._next(lane)]
        drawings = memory.filled([tiles for tiles, _, _ in parts])
        np.concatenate([some for _, some, _ in parts], out=labels.numpy())
        np.concatenate([some for _, _, some in parts], out=rows)
        return Batch(step, drawings, labels, rows)

    def _next(
        self, lane: int
    ) -> Iterator[tuple[Tiles, NDArray[np.uint16], NDArray[np.uint32]]]:  # fmt: skip
        """Yield a lane's drawings of the next batch, in one part per window."""
        low, high = self._share.cut(lane)
        wanted, windows = high - low, self._windows[lane]
        while wanted:
            count = min(wanted, windows[0].left)
            yield windows[0].take(count)
            wanted -= count
            if not windows[0].left:
                with self._lock:
                    del windows[0]


def delivered(
    order: Order, share: Share, scheduled: ScheduledWindow, first_step: int
) -> NDArray[np.int64]:
    """Return which of a window's drawings a rank delivers from `first_step` on, in order of
    delivery: indices into its pieces laid end to end."""
    window, lane_batch = scheduled.window, order.lane_batch
    positions = np.arange(window.start, window.start + window.count)
    low, high = share.cut(scheduled.lane)
    offsets = positions % lane_batch
    chosen = (offsets >= low) & (offsets < high)
    chosen &= (positions >= first_step * lane_batch) & (positions < order.steps * lane_batch)
    return window.shuffled()[chosen]
