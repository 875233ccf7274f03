"""Compute the loss from stored bytes, as one module for the compiler, autograd and DDP."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from quickdraw_dist.base.settings import Augment
from quickdraw_dist.models.input import Normalisation
from quickdraw_dist.training.augment import augment


class Objective(nn.Module):
    """Normalisation, augmentation, network and cross entropy.

    Targets are smoothed after Szegedy and others, "Rethinking the Inception Architecture" (2016).
    """

    def __init__(
        self,
        network: nn.Module,
        settings: Augment,
        *,
        normalisation: Normalisation,
        label_smoothing: float,
        autocast: torch.dtype | None,
    ) -> None:
        """Only the network computes in the `autocast` type, float32 if that is None."""
        super().__init__()
        self.network = network
        self._settings, self._normalisation = settings, normalisation
        self._label_smoothing, self._autocast = label_smoothing, autocast

    def forward(
        self, drawings: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss in nats and the number of correct first guesses, summed over B drawings.

        Args:
            drawings: (B, 28, 28) uint8.
            labels: (B,) int64.
        """
        with torch.no_grad():
            pixels = self._normalisation.apply(drawings)
            pixels = augment(pixels, self._settings, self._normalisation.background)
        on = self._autocast is not None
        with torch.autocast(drawings.device.type, dtype=self._autocast, enabled=on):
            logits = self.network(pixels).float()
        loss = functional.cross_entropy(
            logits, labels, reduction="sum", label_smoothing=self._label_smoothing
        )
        return loss, (logits.argmax(1) == labels).sum()
