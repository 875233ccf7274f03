"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Position:
    """How far a run is."""

    epoch: int  # whole ones behind it
    epochs: int
    step: int  # in this epoch
    epoch_steps: int
    total_steps: int  # in all epochs so far
    global_batch: int

    @property
    def drawings(self) -> int:
        """Drawings trained on so far, over all ranks."""
        return self.total_steps * self.global_batch

    @property
    def total_drawings(self) -> int:
        """Drawings of the whole run."""
        return self.epochs * self.epoch_steps * self.global_batch

    @property
    def ended(self) -> bool:
        """Whether all of them are done."""
        return self.drawings >= self.total_drawings

    @property
    def passes(self) -> float:
        """Epochs so far, with the fraction of this one."""
        return self.epoch + self.step / self.epoch_steps


class Interval:
    """Fires whenever a growing count of drawings passes a multiple; never when it is 0."""

    def __init__(self, every: int) -> None:
        """Every so many drawings."""
        self.every = every

    def passed(self, before: int, after: int) -> bool:
        """Whether a multiple lies in (before, after]: the same after any restart."""
        return self.every > 0 and before // self.every != after // self.every


@dataclass(frozen=True)
class TrainingMetrics:
    """What training did since the last look, over all ranks; nan where no step has a number."""

    loss: float  # mean of a drawing, nats
    accuracy: float  # share of the drawings that were recognised
    gradient_norm: float  # of the last step, before clipping
    learning_rate: float  # of the last step
