"""The ring buffer that decoded drawings go into.

A ring has `steps` slots, each one batch of a rank's share, D drawings. Step t uses slot t % steps,
and so the memory of step t - steps.

    steps = 4, D = 3, the consumer has been handed steps 5 and 6:

    slot           0            1            2            3
    step           8            5            6            7
                   decoding     in use       in use       decoding

Ownership. The memory of step t belongs to the decoding threads until the loader yields the batch;
windows of later steps may be written there only after the loader released it. The consumer owns the
batch from then on, until it requests the second batch after it (`BATCHES_IN_USE` = 2: one in the
step, one being copied to the device) and, where it set `Batch.copied`, until that CUDA event has
completed. Then the loader releases the slot.

Bitmaps are written where their batch lies (`bitmaps.py`). Strokes differ in length, so they wait in
windows and are laid end to end when their batch is due (`strokes.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from quickdraw_dist.data.order.schedule import ScheduledWindow
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.batch import Batch


class Ring(Protocol):
    """The next batches of an epoch."""

    steps: int
    """Slots: batches that are in use or decoded ahead."""

    def begin(self, first_step: int) -> None:
        """Begin an epoch at a step; what an epoch left early has decoded is discarded."""

    def put(self, scheduled: ScheduledWindow, blocks: Iterator[Block]) -> None:
        """Take a window, a block per piece, each valid until the next one is requested. Threads
        call this, each for another window."""

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, all of whose windows have been put; the slot that it reuses
        has been released. Called once for each step, in order."""
