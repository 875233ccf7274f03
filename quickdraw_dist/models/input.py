"""Convert stored drawings to a network's input: the one way for training (training/objective.py),
evaluation (evaluation/metrics.py) and whatever uses a trained model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import nn

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Strokes
from quickdraw_dist.models.stroke_raster import StrokeRaster

Stored = torch.Tensor | tuple[torch.Tensor, ...]
"""Drawings as a device holds them: (B, 28, 28) uint8, or the tiles, owners, numbers, counts and
verdicts of `StrokeBatch.inputs`."""


class _Strokes(Protocol):
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors of a batch of strokes."""


def stored(drawings: torch.Tensor | _Strokes) -> Stored:
    """Return the tensors of a batch's drawings: what compilers and DDP pass on."""
    return drawings if isinstance(drawings, torch.Tensor) else drawings.inputs()


class Raster(NamedTuple):
    """Which pictures a network looks at, and what they are made of."""

    content: str = "bitmaps"
    """"bitmaps", which are pictures, or "strokes", which are rendered."""
    side: int = 28
    channels: int = 1

    @classmethod
    def of(cls, content: str, settings: Strokes) -> Raster:
        """Return that of a dataset of this content; the settings are of strokes only."""
        return cls(content, settings.side, settings.channels) if content == "strokes" else cls()

    @property
    def name(self) -> str:
        """The entry `raster` of a checkpoint's meta.json."""
        return _BITMAPS if self.content == "bitmaps" else f"strokes-{self.side}-{self.channels}"

    @classmethod
    def parse(cls, name: str) -> Raster:
        """Return the raster of a name.

        Raises:
            RefusedError: this release has no raster of this name.
        """
        if name == _BITMAPS:
            return cls()
        if found := re.fullmatch(r"strokes-(\d+)-([14])", name):
            return cls("strokes", int(found[1]), int(found[2]))
        raise RefusedError("raster", name, "unknown to this release", "Update quickdraw-dist")

    def fits(self, content: str) -> bool:
        """Whether a network of this raster can look at drawings of this content, too: official
        bitmaps have one channel of 28x28 pixels, which strokes can be rendered to."""
        return content == self.content or (self.side, self.channels) == (28, 1)


_BITMAPS = "quickdraw-28x28"
"""The geometry of the official 28x28 bitmaps."""


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of a dataset's training pixels, on a scale of 0 to 1.

    The manifest stores both. A checkpoint's meta.json does, too, under "normalisation": a model's
    input is normalised with the values that it was trained with.
    """

    mean: float
    std: float

    @property
    def background(self) -> float:
        """Value of an empty pixel in a network's input."""
        return -self.mean / self.std

    def apply(self, drawings: torch.Tensor) -> torch.Tensor:
        """Return (B, 1, 28, 28) float32 of about zero mean and unit variance.

        Args:
            drawings: (B, 28, 28) uint8; left unchanged.
        """
        return drawings.unsqueeze(1).float().sub_(255 * self.mean).div_(255 * self.std)

    def apply_rendered(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return rendered pictures, (B, C, side, side) float, with their ink as `apply` has it.

        Order and direction have the same unit, and stay 0 where there is no ink.
        """
        ink, rest = pictures[:, :1], pictures[:, 1:]
        return torch.cat([(ink - self.mean) / self.std, rest / self.std], 1)


class NetworkInput(nn.Module):
    """Makes (B, C, side, side) float32 inputs of stored drawings of either content."""

    def __init__(self, raster: Raster, normalisation: Normalisation) -> None:
        super().__init__()
        self.raster, self.normalisation = raster, normalisation
        self.render = StrokeRaster(raster.side, raster.channels)

    @torch.no_grad()
    def forward(self, drawings: Stored) -> torch.Tensor:
        """Return the network's input, without random changes."""
        if isinstance(drawings, torch.Tensor):
            return self.normalisation.apply(drawings)
        return self.normalisation.apply_rendered(self.render(*drawings[:4]))


@torch.no_grad()
def thumbnails(drawings: Stored) -> torch.Tensor:
    """Return (B, 28, 28) uint8 pictures of stored drawings, white ink on black, to show them."""
    if isinstance(drawings, torch.Tensor):
        return drawings
    render = StrokeRaster().to(drawings[0].device)
    pictures: torch.Tensor = render(*drawings[:4])[:, 0]
    return (255 * pictures).round_().to(torch.uint8)
