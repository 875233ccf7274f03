"""Room for decoded blocks: equal buffers in one allocation, so that a batch is one gather."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.drawings import PIXELS, SIDE

BYTES_A_DRAWING = PIXELS + 2 + 4
"""Pixels, label and row."""


class Arena:
    """A fixed number of buffers, each for one block of at most `capacity` drawings."""

    def __init__(self, buffers: int, capacity: int) -> None:
        """Reserve the memory; pages are taken as they are first written."""
        self.capacity = capacity
        self._drawings = np.empty((buffers * capacity, SIDE, SIDE), np.uint8)
        self._labels = np.empty(buffers * capacity, np.uint16)
        self._rows = np.empty(buffers * capacity, np.uint32)
        self._buffers = buffers
        self._free: list[int] = []
        self.clear()

    def clear(self) -> None:
        """All buffers are free again."""
        self._free = list(range(self._buffers))

    def take(self, count: int) -> list[int] | None:
        """Buffers for `count` blocks, None when there are not so many free."""
        if len(self._free) < count:
            return None
        return [self._free.pop() for _ in range(count)]

    def give_back(self, buffers: list[int]) -> None:
        """These may be written again."""
        self._free.extend(buffers)

    def views(
        self, buffer: int, count: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint32]]:
        """Where a block of `count` drawings goes: (count, 28, 28), (count,) and (count,)."""
        part = slice(buffer * self.capacity, buffer * self.capacity + count)
        return self._drawings[part], self._labels[part], self._rows[part]

    def gather(
        self, index: NDArray[np.int64], drawings: NDArray[np.uint8], labels: NDArray[np.uint16],
        rows: NDArray[np.uint32],
    ) -> None:  # fmt: skip
        """Copy the drawings at these places, buffer * capacity + place in the block, (n,)."""
        # With mode="clip" numpy writes straight into `out`; the default one buffers it.
        np.take(self._drawings, index, axis=0, out=drawings, mode="clip")
        np.take(self._labels, index, out=labels, mode="clip")
        np.take(self._rows, index, out=rows, mode="clip")
