"""Batches in the making: decoded drawings go straight to their places in coming batches."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.data.drawings.drawing import PIXELS
from quickdraw_dist.data.stream.batch import allocate


class Ring:
    """Room for the batches of so many steps in a row; step t lies where t - `steps` lay.

    One copy brings a drawing from where it was decoded (or read to) to where the device reads it.
    Threads write to different places, so they need no lock.
    """

    def __init__(self, steps: int, count: int, pin: bool) -> None:
        """Reserve `steps` batches of `count` drawings; pages are taken as they are first written,
        or at once where they are pinned."""
        self.steps, whole = steps, steps * count
        # What belongs to no batch goes to one more place at the end: cheaper than leaving it out.
        drawings, labels = allocate(whole + 1, pin)
        rows = np.empty(whole + 1, np.uint32)
        parts = [slice(first, first + count) for first in range(0, whole, count)]
        self._batches = [(drawings[part], labels[part], rows[part]) for part in parts]
        # As one element a drawing, which numpy copies as a whole, and without the interpreter lock.
        self._pixels = _as_elements(drawings.numpy())
        self._labels, self._rows = labels.numpy(), rows

    def put_drawings(self, places: NDArray[np.int64], drawings: NDArray[np.uint8]) -> None:
        """Copy drawings, (n, 28, 28), to these places, (n,)."""
        self._pixels[places] = _as_elements(drawings)

    def put_identities(
        self, places: NDArray[np.int64], labels: NDArray[np.uint16], rows: NDArray[np.uint32]
    ) -> None:
        """Copy labels and rows, (n,), to these places, (n,)."""
        self._labels[places] = labels
        self._rows[places] = rows

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.uint32]]:
        """Drawings (n, 28, 28), labels (n,) and rows (n,) of a step."""
        return self._batches[step % self.steps]


def _as_elements(drawings: NDArray[np.uint8]) -> NDArray[np.void]:
    """(n, 28, 28) uint8, contiguous -> (n,) of 784 bytes each, without a copy."""
    return drawings.reshape(-1).view(f"V{PIXELS}")
