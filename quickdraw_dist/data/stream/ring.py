"""The ring buffer that decoded drawings go into, and the index of where each one goes.

A ring has `steps` slots, each one batch of a rank's share, D drawings. Step t uses slot t % steps,
and so the memory of step t - steps. The drawings are elements numbered through: number p of step t
has ring index (t % steps) * D + p. One spare element takes drawings that this rank does not deliver
in this epoch; writing them there is cheaper than filtering them out.

    steps = 4, D = 3, the consumer has been handed steps 5 and 6:

    slot           0            1            2            3          spare
    step           8            5            6            7
    ring index     0  1  2      3  4  5      6  7  8      9 10 11    12
                   decoding     in use       in use       decoding

Data and shapes, for a window of n drawings in pieces of k:

    RingIndex.of      (n,) int64 ring indices, pieces laid end to end; `spare` where not delivered
    SplitReader.piece (k, 28, 28) uint8 drawings, (k,) uint16 labels, (k,) uint32 rows
    Ring.put_*        writes them at these indices: one copy of 784 bytes per drawing
    Ring.batch        (D, 28, 28) uint8, (D,) int64, (D,) uint32: views of a slot, no copy

Ownership. The memory of step t belongs to the decoding threads until the loader yields the batch;
windows of later steps may be written there only after the loader released it. The consumer owns the
batch from then on, until it requests the second batch after it (`BATCHES_IN_USE` = 2: one in the
step, one being copied to the device) and, where it set `Batch.copied`, until that CUDA event has
completed. Then the loader releases the slot.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.data.drawings.drawing import PIXELS
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.schedule import ScheduledWindow
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.stream.batch import allocate


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


class Ring:
    """The memory of a ring buffer; threads write to different elements, so they need no lock."""

    def __init__(self, steps: int, drawings: int, pin: bool) -> None:
        """Allocate `steps` slots of `drawings` each and the spare element. Pages are taken when
        first written, or at once if pinned."""
        self.steps, spare = steps, steps * drawings
        pixels, labels = allocate(spare + 1, pin)
        rows = np.empty(spare + 1, np.uint32)
        slots = [slice(first, first + drawings) for first in range(0, spare, drawings)]
        self._batches = [(pixels[slot], labels[slot], rows[slot]) for slot in slots]
        # One element per drawing: numpy copies it as a whole, and without the interpreter lock.
        self._pixels = _as_elements(pixels.numpy())
        self._labels, self._rows = labels.numpy(), rows

    def put_drawings(self, indices: NDArray[np.int64], drawings: NDArray[np.uint8]) -> None:
        """Copy drawings, (n, 28, 28), to these ring indices, (n,)."""
        self._pixels[indices] = _as_elements(drawings)

    def put_identities(
        self, indices: NDArray[np.int64], labels: NDArray[np.uint16], rows: NDArray[np.uint32]
    ) -> None:
        """Copy labels and rows, (n,), to these ring indices, (n,)."""
        self._labels[indices] = labels
        self._rows[indices] = rows

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.uint32]]:
        """Return views of a step's slot: drawings (D, 28, 28), labels (D,) and rows (D,)."""
        return self._batches[step % self.steps]


def _as_elements(drawings: NDArray[np.uint8]) -> NDArray[np.void]:
    """(n, 28, 28) uint8, contiguous -> (n,) of 784 bytes each, without a copy."""
    return drawings.reshape(-1).view(f"V{PIXELS}")
