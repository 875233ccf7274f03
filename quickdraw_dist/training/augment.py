"""Batched transforms on the device: from stored bytes to what the network sees.

All but `normalise` take (B, 1, 28, 28) floats, leave them as they are and give others like them.
What is random is each drawing's own, from torch's generator, which is seeded before every step.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from quickdraw_dist.base.settings import Augment

ROTATION_RADIANS = 0.2
SCALE = 0.15
SHEAR = 0.15
SHIFT_PIXELS = 1.5
"""Largest change of each kind, drawn uniformly up to it in both directions: within what people
draw, so that the class stays the same."""


ERASED_SHARE = (0.02, 0.2)
ERASED_ASPECT = 3.0
"""Least and largest area of the rectangle that is erased, as a share of the picture, and its
largest ratio of sides either way."""


def augment(drawings: torch.Tensor, settings: Augment, background: float) -> torch.Tensor:
    """All changes that the settings ask for; `background` is the value of an empty pixel."""
    if settings.affine:
        drawings = random_affine(drawings, background)
    if settings.thickness:
        drawings = random_thickness(drawings, settings.thickness)
    if settings.flip:
        drawings = random_flip(drawings, settings.flip)
    if settings.erase:
        drawings = random_erase(drawings, settings.erase, background)
    return drawings


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


def _chosen(drawings: torch.Tensor, probability: float) -> torch.Tensor:
    """Which drawings are changed, (B, 1, 1, 1) bool."""
    return torch.rand(len(drawings), 1, 1, 1, device=drawings.device) < probability


def random_flip(drawings: torch.Tensor, probability: float) -> torch.Tensor:
    """Mirror some drawings left to right."""
    return torch.where(_chosen(drawings, probability), drawings.flip(-1), drawings)


def random_thickness(drawings: torch.Tensor, probability: float) -> torch.Tensor:
    """Make the lines of some drawings thicker: a mix of a drawing and its dilation by 3x3 pixels,
    the share of which is drawn uniformly from 0 to 1."""
    share = torch.rand(len(drawings), 1, 1, 1, device=drawings.device)
    share = torch.where(_chosen(drawings, probability), share, 0.0)
    dilated = functional.max_pool2d(drawings, 3, stride=1, padding=1)
    return torch.lerp(drawings, dilated, share)


def random_erase(drawings: torch.Tensor, probability: float, background: float) -> torch.Tensor:
    """Empty a rectangle of some drawings, anywhere in the picture.

    After Zhong and others, "Random Erasing Data Augmentation" (2020).
    """
    count, _, _, side = drawings.shape
    low, high = ERASED_SHARE
    draws = torch.rand(4, count, 1, device=drawings.device)
    area = (low + (high - low) * draws[0]) * side**2
    aspect = torch.exp((2 * draws[1] - 1) * math.log(ERASED_ASPECT))
    pixels = torch.arange(side, device=drawings.device)

    def span(length: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        length = length.round().clamp(1, side)
        start = (where * (side - length + 1)).floor()
        return (pixels >= start) & (pixels < start + length)  # (B, 28)

    rows, columns = span((area * aspect).sqrt(), draws[2]), span((area / aspect).sqrt(), draws[3])
    erased = rows.view(count, 1, side, 1) & columns.view(count, 1, 1, side)
    return torch.where(erased & _chosen(drawings, probability), background, drawings)
