"""What every step did, kept on the device until somebody looks: the step waits for nothing."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, nan

import torch

from quickdraw_dist.distributed.ranks import sum_over_ranks
from quickdraw_dist.run.position import TrainingMetrics


@dataclass(frozen=True)
class Figures:
    """Of some steps in their order, an element each."""

    losses: list[float]  # sum over the global batch, nats
    own_losses: list[float]  # sum over this rank's part of it
    right: list[float]  # drawings of the global batch whose first guess was right
    norms: list[float]  # of the gradient before clipping: the same number on every rank

    def skipped(self) -> list[int]:
        """Which of the steps moved nothing: all ranks find the same."""
        return [at for at, norm in enumerate(self.norms) if not isfinite(norm)]

    def counts(self, global_batch: int, learning_rate: float) -> TrainingMetrics:
        """Means over the drawings of the steps whose loss is a number."""
        good = [at for at, loss in enumerate(self.losses) if isfinite(loss)]
        drawings = len(good) * global_batch
        return TrainingMetrics(
            sum(self.losses[at] for at in good) / drawings if good else nan,
            sum(self.right[at] for at in good) / drawings if good else nan,
            next((norm for norm in reversed(self.norms) if isfinite(norm)), nan),
            learning_rate,
        )


class Tally:
    """A row of figures a step, on the device."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._rows: list[torch.Tensor] = []

    def add(self, loss: torch.Tensor, right: torch.Tensor, norm: torch.Tensor) -> None:
        """A step's figures, three scalars: of this rank's part, and the common gradient's norm."""
        self._rows.append(torch.stack([loss, right, norm]))

    def read(self) -> Figures:
        """The figures since the last call, over all ranks, which call it together.

        Waits for the device, so it is called only every few steps.
        """
        if not self._rows:
            return Figures([], [], [], [])
        rows = torch.stack(self._rows)  # (steps, 3)
        self._rows.clear()
        whole = sum_over_ranks(rows[:, :2].contiguous())
        (own, _, norms), (losses, right) = rows.T.tolist(), whole.T.tolist()
        return Figures(losses, own, right, norms)
