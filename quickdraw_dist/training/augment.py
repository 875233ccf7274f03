"""Random changes of training drawings, batched on the device.

Every function but those of strokes takes normalised (B, 1, 28, 28) float, leaves it unchanged and
returns a tensor of the same shape and type. Strokes are changed in the same way as points, before
they are rendered, so that nothing blurs. Each drawing has random numbers of its own, from torch's
default generator, which the learner seeds before every step.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from quickdraw_dist.base.geometry import FRAME, LINE_WIDTH
from quickdraw_dist.base.settings import Augment
from quickdraw_dist.models.input import NetworkInput, Stored

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


def training_input(drawings: Stored, source: NetworkInput, settings: Augment) -> torch.Tensor:
    """Return the network's input of stored drawings, (B, C, side, side) float, after all changes
    that the settings ask for."""
    if isinstance(drawings, torch.Tensor):
        return augment(source(drawings), settings, source.normalisation.background)
    counts = drawings[3]
    transform, width = random_strokes(len(counts), settings, counts.device)
    pictures = source.render(*drawings[:4], transform=transform, width=width)
    if settings.erase:
        pictures = random_erase(pictures, settings.erase, 0.0)
    return source.normalisation.apply_rendered(pictures)


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


def random_strokes(
    count: int, settings: Augment, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return what `StrokeRaster` takes to change drawings as `augment` does: a map of the points of
    each, (count, 2, 3), and the width of its lines in units, (count,). None: as they are."""
    transform = _inverted(affine_matrices(count, device)) if settings.affine else None
    width = None
    if settings.thickness:
        share = _shares(count, settings.thickness, device).flatten()
        width = LINE_WIDTH + share * (2 * FRAME / _SIDE)
    if settings.flip:
        if transform is None:
            transform = torch.eye(2, 3, device=device).expand(count, 2, 3)
        # No constant from the host: the step would wait for its copy.
        sign = torch.where(_chosen(count, settings.flip, device)[:, 0, 0], -1.0, 1.0)  # (count, 1)
        transform = torch.stack([sign * transform[:, 0], transform[:, 1]], 1)
    return transform, width


def _inverted(matrices: torch.Tensor) -> torch.Tensor:
    """Invert affine maps, (B, 2, 3), whose determinants are not 0."""
    (a, b, c), (d, e, f) = matrices.permute(1, 2, 0)
    rows: torch.Tensor = torch.stack([e, -b, b * f - c * e, -d, a, c * d - a * f], 1)
    return rows.div((a * e - b * d)[:, None]).view(-1, 2, 3)


def _chosen(count: int, probability: float, device: torch.device) -> torch.Tensor:
    """Choose drawings with this probability: (count, 1, 1, 1) bool."""
    return torch.rand(count, 1, 1, 1, device=device) < probability


def _shares(count: int, probability: float, device: torch.device) -> torch.Tensor:
    """Return numbers uniform in [0, 1] for drawings chosen with this probability, 0 for the others:
    (count, 1, 1, 1)."""
    share = torch.rand(count, 1, 1, 1, device=device)
    return torch.where(_chosen(count, probability, device), share, 0.0)


def random_flip(drawings: torch.Tensor, probability: float) -> torch.Tensor:
    """Mirror drawings left to right, each with this probability."""
    flipped = _chosen(len(drawings), probability, drawings.device)
    return torch.where(flipped, drawings.flip(-1), drawings)


def random_thickness(drawings: torch.Tensor, probability: float) -> torch.Tensor:
    """Thicken the lines of drawings, each with this probability.

    The result is a mix of the drawing and its dilation by 3x3 pixels; the dilation's share is
    uniform in [0, 1].
    """
    share = _shares(len(drawings), probability, drawings.device)
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
    chosen = _chosen(count, probability, drawings.device)
    return torch.where(erased & chosen, background, drawings)
