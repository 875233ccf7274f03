"""What a loader hands over: one rank's part of one global batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.data.drawings.drawing import SIDE


@dataclass
class Batch:
    """A rank's part of one global batch, valid until the next but one is asked for: what copies to
    a device is one batch ahead of its use."""

    step: int  # in the epoch
    drawings: torch.Tensor  # (n, 28, 28) uint8, pinned when asked for
    labels: torch.Tensor  # (n,) int64
    rows: NDArray[np.uint32]  # (n,): with the labels, the drawings' identities
    copied: torch.cuda.Event | None = None  # set by who copies asynchronously: done reading


def allocate(count: int, pin: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Tensors for `count` drawings and their labels."""
    if not pin:  # numpy asks the system for huge pages, which rows all over the place profit from
        drawings = torch.from_numpy(np.empty((count, SIDE, SIDE), np.uint8))
        return drawings, torch.empty(count, dtype=torch.int64)
    return (
        torch.empty((count, SIDE, SIDE), dtype=torch.uint8, pin_memory=True),
        torch.empty(count, dtype=torch.int64, pin_memory=True),
    )
