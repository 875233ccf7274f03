"""From stored bytes to network input: the one normalisation of training, evaluation and export."""

from __future__ import annotations

import torch


def normalise(drawings: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """(B, 28, 28) uint8 -> (B, 1, 28, 28) float32 of about zero mean and unit variance.

    `mean` and `std` are the dataset's, on a scale of 0 to 1 (manifest and checkpoint hold them).
    """
    return drawings.unsqueeze(1).float().sub_(255 * mean).div_(255 * std)
