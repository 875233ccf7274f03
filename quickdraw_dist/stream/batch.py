"""What a loader hands over: one rank's part of one global batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.drawings import SIDE


@dataclass
class Batch:
    """A rank's part of one global batch. Valid until the next one is asked for."""

    step: int  # in the epoch
    drawings: torch.Tensor  # (n, 28, 28) uint8, pinned when asked for
    labels: torch.Tensor  # (n,) int64
    rows: NDArray[np.uint32]  # (n,): with the labels, the drawings' identities
    digest: int  # order digest of these drawings, modulo 2^64
    copied: torch.cuda.Event | None = None  # set by who copies asynchronously: done reading


BYTES_A_DRAWING = SIDE * SIDE + 8
"""Of a batch: pixels and label."""


def room(count: int, pin: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Tensors for the drawings and labels of a batch of `count`."""
    return (
        torch.empty((count, SIDE, SIDE), dtype=torch.uint8, pin_memory=pin),
        torch.empty(count, dtype=torch.int64, pin_memory=pin),
    )
