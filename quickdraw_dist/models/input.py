"""Convert stored bytes to a network's input: the one way for training (training/objective.py),
evaluation (evaluation/metrics.py) and whatever uses a trained model."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
