"""Random changes of training drawings, batched on the device.

Every function takes normalised (B, 1, 28, 28) float, leaves it unchanged and returns a tensor of
the same shape and type. Each drawing has random numbers of its own, from torch's default generator,
which the learner seeds before every step.
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
"""Largest change of each kind; amounts are uniform in [-largest, largest]. Within the variation of
people's own drawings, so that the class stays the same. Pixels are those of a 28x28 drawing."""

_SIDE = 28

ERASED_SHARE = (0.02, 0.2)
ERASED_ASPECT = 3.0
"""Smallest and largest area of the erased rectangle, as a share of the drawing's, and the largest
ratio of its longer to its shorter side."""


def augment(drawings: torch.Tensor, settings: Augment, background: float) -> torch.Tensor:
    """Apply all changes that the settings ask for.

    Args:
        drawings: (B, 1, 28, 28) float.
        settings: which changes, and the probability of each.
        background: value of an empty pixel.
    """
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
    """Rotate, scale, shear and shift every drawing by random amounts, sampled bicubically.

    Affine distortions of hand drawings: Simard and others, "Best Practices for Convolutional
    Neural Networks Applied to Visual Document Analysis" (2003). Pixels that come in from outside
    are `background`; where the interpolation overshoots, the drawing's own range limits it.
    """
    matrices = affine_matrices(len(drawings), drawings.device)
    grid = functional.affine_grid(matrices, list(drawings.shape), align_corners=False)
    ink = drawings - background
    # Sampled bilinearly, lines 1.5 pixels wide lose 42 % of their squared contrast (bicubically
    # 19 %), in training only, and what they teach is lost (benchmarks/results/input_ablation.md).
    moved = functional.grid_sample(ink, grid, mode="bicubic", align_corners=False)
    most = ink.amax((1, 2, 3), keepdim=True)
    return torch.minimum(moved.clamp(min=0), most) + background


def affine_matrices(count: int, device: torch.device) -> torch.Tensor:
    """Return random maps from a place in the changed drawing to the one it comes from, (count, 2,
    3); x and y are -1 at the left and top edge, 1 at the others."""
    draws = 2 * torch.rand(5, count, device=device) - 1
    angle, scale, shear = draws[0] * ROTATION_RADIANS, draws[1] * SCALE, draws[2] * SHEAR  # (B,)
    right, down = draws[3:] * (2 * SHIFT_PIXELS / _SIDE)
    cosine, sine = (1 + scale) * torch.cos(angle), (1 + scale) * torch.sin(angle)
    rows = [cosine, shear * cosine - sine, right, sine, shear * sine + cosine, down]
    return torch.stack(rows, 1).view(count, 2, 3)


def _chosen(drawings: torch.Tensor, probability: float) -> torch.Tensor:
    """Choose drawings with this probability: (B, 1, 1, 1) bool."""
    return torch.rand(len(drawings), 1, 1, 1, device=drawings.device) < probability


def random_flip(drawings: torch.Tensor, probability: float) -> torch.Tensor:
    """Mirror drawings left to right, each with this probability."""
    return torch.where(_chosen(drawings, probability), drawings.flip(-1), drawings)


def random_thickness(drawings: torch.Tensor, probability: float) -> torch.Tensor:
    """Thicken the lines of drawings, each with this probability.

    The result is a mix of the drawing and its dilation by 3x3 pixels; the dilation's share is
    uniform in [0, 1].
    """
    share = torch.rand(len(drawings), 1, 1, 1, device=drawings.device)
    share = torch.where(_chosen(drawings, probability), share, 0.0)
    dilated = functional.max_pool2d(drawings, 3, stride=1, padding=1)
    return torch.lerp(drawings, dilated, share)


def random_erase(drawings: torch.Tensor, probability: float, background: float) -> torch.Tensor:
    """Fill a random rectangle with `background`, with this probability per drawing.

    After Zhong and others, "Random Erasing Data Augmentation" (2020).
    """
    count, _, _, side = drawings.shape
    low, high = ERASED_SHARE
    draws = torch.rand(4, count, 1, device=drawings.device)
    area = (low + (high - low) * draws[0]) * side**2
    aspect = torch.exp((2 * draws[1] - 1) * math.log(ERASED_ASPECT))
    pixels = torch.arange(side, device=drawings.device)

    def span(length: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        length = length.round().clamp(1, side)
        start = (offset * (side - length + 1)).floor()
        return (pixels >= start) & (pixels < start + length)  # (B, 28) bool

    rows, columns = span((area * aspect).sqrt(), draws[2]), span((area / aspect).sqrt(), draws[3])
    erased = rows.view(count, 1, side, 1) & columns.view(count, 1, 1, side)
    return torch.where(erased & _chosen(drawings, probability), background, drawings)
