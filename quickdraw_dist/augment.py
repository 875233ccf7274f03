"""Batched transforms on the device: from stored bytes to what the network sees."""

from __future__ import annotations

import torch
from torch.nn import functional

ROTATION_RADIANS = 0.2
SCALE = 0.15
SHEAR = 0.15
SHIFT_PIXELS = 1.5
"""Largest change of each kind, drawn uniformly up to it in both directions: within what people
draw, so that the class stays the same."""


def normalise(drawings: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """(B, 28, 28) uint8 -> (B, 1, 28, 28) float32 of about zero mean and unit variance.

    `mean` and `std` are the dataset's, on a scale of 0 to 1 (manifest and checkpoint hold them).
    """
    return drawings.unsqueeze(1).float().sub_(255 * mean).div_(255 * std)


def random_affine(drawings: torch.Tensor, background: float) -> torch.Tensor:
    """Rotate, scale, shear and shift every drawing by its own random amounts.

    Args:
        drawings: (B, 1, 28, 28) float.
        background: the value of an empty pixel; fills what comes in from outside.
    """
    count, _, _, side = drawings.shape
    draws = 2 * torch.rand(5, count, device=drawings.device) - 1
    angle, scale, shear = draws[0] * ROTATION_RADIANS, draws[1] * SCALE, draws[2] * SHEAR  # (B,)
    right, down = draws[3:] * (2 * SHIFT_PIXELS / side)  # the grid's unit is half a side
    cosine, sine = (1 + scale) * torch.cos(angle), (1 + scale) * torch.sin(angle)
    rows = [cosine, shear * cosine - sine, right, sine, shear * sine + cosine, down]
    grid = functional.affine_grid(
        torch.stack(rows, 1).view(count, 2, 3), list(drawings.shape), align_corners=False
    )
    moved = functional.grid_sample(drawings - background, grid, align_corners=False)
    return moved + background
