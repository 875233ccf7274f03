"""How far a run is, and what it measured since the last log line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Position:
    """The completed steps of a run, and the lengths that turn them into epochs and drawings."""

    epoch: int  # completed epochs
    epochs: int  # in the whole run
    step: int  # completed steps of the current epoch
    epoch_steps: int  # steps per epoch
    total_steps: int  # completed steps of all epochs
    global_batch: int  # drawings per step, over all ranks

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
        """Whether the run has trained on all its drawings."""
        return self.drawings >= self.total_drawings

    @property
    def fractional_epoch(self) -> float:
        """Completed epochs, with the fraction of the current one."""
        return self.epoch + self.step / self.epoch_steps


class Interval:
    """Fires whenever a growing count of drawings passes a multiple of `every`; never for 0."""

    def __init__(self, every: int) -> None:
        self.every = every

    def passed(self, before: int, after: int) -> bool:
        """Return whether a multiple lies in (before, after]: the same after any restart."""
        return self.every > 0 and before // self.every != after // self.every


@dataclass(frozen=True)
class TrainingMetrics:
    """Metrics of the steps of one log interval, over all ranks; NaN where no step has a value."""

    loss: float  # mean per drawing, nats
    accuracy: float  # share of drawings recognised at the first guess
    gradient_norm: float  # of the last step, before clipping
    learning_rate: float  # of the last step
