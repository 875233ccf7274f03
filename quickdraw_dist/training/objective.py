"""Compute the loss from stored drawings, as one module for the compiler, autograd and DDP."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from quickdraw_dist.base.settings import Augment
from quickdraw_dist.data.drawings.strokes.arrays import UNRECOGNIZED
from quickdraw_dist.models.input import NetworkInput, Stored
from quickdraw_dist.training.augment import training_input


class Objective(nn.Module):
    """Rendering of strokes, augmentation, normalisation, network and cross entropy.

    Targets are smoothed after Szegedy and others, "Rethinking the Inception Architecture" (2016).
    """

    def __init__(
        self,
        network: nn.Module,
        settings: Augment,
        *,
        source: NetworkInput,
        label_smoothing: float,
        autocast: torch.dtype | None,
        unrecognized_weight: float = 1.0,
    ) -> None:
        """Only the network computes in the `autocast` type, float32 if that is None.

        Args:
            source: what the network's input is made of.
            unrecognized_weight: weight in the loss of the drawings of strokes that Google's
                recogniser did not recognise.
        """
        super().__init__()
        self.network, self.source = network, source
        self._settings, self._unrecognized_weight = settings, unrecognized_weight
        self._label_smoothing, self._autocast = label_smoothing, autocast

    def forward(self, drawings: Stored, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss in nats and the number of correct first guesses, summed over B drawings.

        Args:
            drawings: B drawings.
            labels: (B,) int64.
        """
        with torch.no_grad():
            pixels = training_input(drawings, self.source, self._settings)
        on = self._autocast is not None
        with torch.autocast(labels.device.type, dtype=self._autocast, enabled=on):
            logits = self.network(pixels).float()
        return self._loss(logits, labels, drawings), (logits.argmax(1) == labels).sum()

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, drawings: Stored) -> torch.Tensor:
        smoothing = self._label_smoothing
        if isinstance(drawings, torch.Tensor) or self._unrecognized_weight == 1:
            return functional.cross_entropy(
                logits, labels, reduction="sum", label_smoothing=smoothing
            )
        losses = functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=smoothing
        )
        unrecognized = drawings[4] == UNRECOGNIZED
        return torch.where(unrecognized, self._unrecognized_weight, 1.0).mul(losses).sum()
