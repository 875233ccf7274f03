"""The ring of bitmaps, and the index of where each drawing goes.

The drawings are elements numbered through: number p of step t has ring index (t % steps) * D + p.
One spare element takes drawings that this rank does not deliver in this epoch; writing them there
is cheaper than filtering them out.

    steps = 4, D = 3

    slot           0            1            2            3          spare
    ring index     0  1  2      3  4  5      6  7  8      9 10 11    12

Data and shapes, for a window of n drawings in pieces of k:

    RingIndex.of      (n,) int64 ring indices, pieces laid end to end; `spare` where not delivered
    SplitReader.piece (k, 28, 28) uint8 drawings, (k,) uint16 labels, (k,) uint32 rows
    BitmapRing.put    writes them at these indices: one copy of 784 bytes per drawing
    BitmapRing.batch  (D, 28, 28) uint8, (D,) int64, (D,) uint32: views of a slot, no copy
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.data.drawings.drawing import PIXELS
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.schedule import ScheduledWindow
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.batch import Batch, allocate


class RingIndex:
    """The ring indices of a window's drawings, for one rank and a ring of `steps` slots."""

    def __init__(self, order: Order, share: Share, steps: int) -> None:
        """`steps` is at least `steps_per_window(order)`."""
        self._order, self._share = order, share
        self.spare = steps * share.drawings
        positions = np.arange(steps * order.lane_batch)
        slots, offsets = np.divmod(positions, order.lane_batch)
        # Indices of consecutive lane positions, twice round the ring: a window is one slice.
        self._period, self._twice = len(positions), np.tile(slots * share.drawings + offsets, 2)

    def of(self, scheduled: ScheduledWindow, first_step: int) -> NDArray[np.int64]:
        """Return the ring indices of a window's drawings, its pieces laid end to end, (n,).

        Drawings that another rank delivers, that come before `first_step`, or that the epoch drops
        get the index `spare`.
        """
        window, share, lane_batch = scheduled.window, self._share, self._order.lane_batch
        begin = window.start % self._period
        delivered = self._twice[begin : begin + window.count] + (
            scheduled.lane * lane_batch - share.start
        )
        delivered[: max(0, first_step * lane_batch - window.start)] = self.spare
        delivered[max(0, self._order.steps * lane_batch - window.start) :] = self.spare
        low, high = share.cut(scheduled.lane)
        if (low, high) != (0, lane_batch):
            offsets = np.arange(window.start, window.start + window.count) % lane_batch
            delivered[(offsets < low) | (offsets >= high)] = self.spare
        stored = np.empty_like(delivered)
        stored[window.shuffled()] = delivered
        return stored


class BitmapRing:
    """A ring of bitmaps; threads write to different elements, so they need no lock."""

    def __init__(self, order: Order, share: Share, steps: int, pin: bool) -> None:
        """Allocate `steps` slots and the spare element, pinned for CUDA if `pin`. Pages are taken
        when first written, or at once if pinned."""
        self.steps, self._first_step = steps, 0
        self._index = RingIndex(order, share, steps)
        spare, drawings = self._index.spare, share.drawings
        pixels, labels = allocate(spare + 1, pin)
        rows = np.empty(spare + 1, np.uint32)
        slots = [slice(first, first + drawings) for first in range(0, spare, drawings)]
        self._slots = [(pixels[slot], labels[slot], rows[slot]) for slot in slots]
        # One element per drawing: numpy copies it as a whole, and without the interpreter lock.
        self._pixels = _as_elements(pixels.numpy())
        self._labels, self._rows = labels.numpy(), rows

    def begin(self, first_step: int) -> None:
        """See `Ring.begin`."""
        self._first_step = first_step

    def put(self, scheduled: ScheduledWindow, blocks: Iterator[Block]) -> None:
        """See `Ring.put`."""
        indices, at = self._index.of(scheduled, self._first_step), 0
        labels, rows = [], []
        for block in blocks:
            here = indices[at : at + len(block.labels)]
            self._pixels[here] = _as_elements(block.pixels)
            labels.append(block.labels.tobytes())  # a copy: the next read reuses the memory
            rows.append(block.rows.tobytes())
            at += len(block.labels)
        self._labels[indices] = np.frombuffer(b"".join(labels), np.uint16)
        self._rows[indices] = np.frombuffer(b"".join(rows), np.uint32)

    def batch(self, step: int) -> Batch:
        """See `Ring.batch`. Nothing is copied: a batch is a slot."""
        return Batch(step, *self._slots[step % self.steps])


def _as_elements(drawings: NDArray[np.uint8]) -> NDArray[np.void]:
    """(n, 28, 28) uint8, contiguous -> (n,) of 784 bytes each, without a copy."""
    return drawings.reshape(-1).view(f"V{PIXELS}")
