"""Per-step metrics, accumulated on the device and read once per log interval: no step waits."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, nan

import torch

from quickdraw_dist.distributed.ranks import sum_over_ranks
from quickdraw_dist.run.position import TrainingMetrics


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of consecutive steps: one list element per step."""

    losses: list[float]  # summed over the global batch, nats
    own_losses: list[float]  # summed over this rank's share, nats
    correct: list[float]  # drawings of the global batch whose first guess was correct
    norms: list[float]  # of the gradient before clipping; equal on every rank

    def skipped(self) -> list[int]:
        """Return the indices of skipped steps, the same on every rank."""
        return [at for at, norm in enumerate(self.norms) if not isfinite(norm)]

    def summary(self, global_batch: int, learning_rate: float) -> TrainingMetrics:
        """Return means over the drawings of the steps whose loss is finite, NaN without one."""
        good = [at for at, loss in enumerate(self.losses) if isfinite(loss)]
        drawings = len(good) * global_batch
        return TrainingMetrics(
            sum(self.losses[at] for at in good) / drawings if good else nan,
            sum(self.correct[at] for at in good) / drawings if good else nan,
            next((norm for norm in reversed(self.norms) if isfinite(norm)), nan),
            learning_rate,
        )


class Tally:
    """Collects one row of metrics per step on the device."""

    def __init__(self) -> None:
        self._rows: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor, correct: torch.Tensor, norm: torch.Tensor) -> None:
        """Add a step's three scalars: loss and correct guesses, summed over this rank's share, and
        the norm of the gradient after the all-reduce, before clipping."""
        self._rows.append(torch.stack([loss, correct, norm]))

    def read(self) -> StepMetrics:
        """Return the metrics of the steps since the last call.

        A collective: all ranks must call it at the same step. Waits for the device.
        """
        if not self._rows:
            return StepMetrics([], [], [], [])
        rows = torch.stack(self._rows)  # (steps, 3)
        self._rows.clear()
        whole = sum_over_ranks(rows[:, :2].contiguous())
        (own, _, norms), (losses, correct) = rows.T.tolist(), whole.T.tolist()
        return StepMetrics(losses, own, correct, norms)
