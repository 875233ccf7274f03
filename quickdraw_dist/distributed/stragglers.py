"""Measure how long every rank's own work takes, and name the rank that the others wait for.

The time of a whole step tells nothing: it is the same on all ranks, because each waits for the
slowest in the gradients' all-reduce.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.base.telemetry.device_timer import mark
from quickdraw_dist.distributed.ranks import World, sum_over_ranks

_SLOW = 1.5
"""A rank whose own work takes this many times the median is reported."""

Mark = torch.cuda.Event | float


class WorkClock:
    """Seconds from the begin of a step until this rank's own gradients are computed.

    That is augmentation, forward and backward passes; not the all-reduce, and not the optimizer,
    which takes the same on all ranks. On CUDA both ends are events that nothing waits for.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """Hook the model's first parameter: a backward pass computes its gradient last."""
        self._cuda = device.type == "cuda"
        self._begun: Mark | None = None
        self._ready: Mark | None = None
        self._steps: list[tuple[Mark, Mark]] = []
        first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        first.register_hook(self._gradient)  # type: ignore[no-untyped-call]

    def _mark(self) -> Mark:
        return mark() if self._cuda else time.monotonic()

    def _gradient(self, _: torch.Tensor) -> None:
        self._ready = self._mark()  # of the last forward pass, where there are several

    def begin(self) -> None:
        """Record the begin of a step."""
        self._begun, self._ready = self._mark(), None

    def end(self) -> None:
        """Record the end of a step's own work."""
        if self._begun is not None and self._ready is not None:
            self._steps.append((self._begun, self._ready))

    def mean_seconds(self) -> float:
        """Return the mean over the steps since the last call, which the device must have
        finished."""
        steps, self._steps = self._steps, []
        seconds = [_elapsed(begun, ready) for begun, ready in steps]
        return statistics.fmean(seconds) if seconds else 0.0


def _elapsed(begun: Mark, ready: Mark) -> float:
    if isinstance(begun, float) or isinstance(ready, float):
        return float(ready) - float(begun)  # type: ignore[arg-type]
    return float(begun.elapsed_time(ready)) / 1000


def slowest(seconds: Sequence[float]) -> tuple[int, float]:
    """Return the rank with the most work, and its work divided by the median; pure."""
    rank = max(range(len(seconds)), key=seconds.__getitem__)
    return rank, seconds[rank] / max(statistics.median_low(seconds), 1e-9)


class Stragglers:
    """Compares the work of all ranks every few steps; rank 0 exports every rank's."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._told: int | None = None

    def compare_ranks(self, own_seconds: float) -> list[str]:
        """Return lines about a rank that has become slow; all ranks call it together."""
        world = self._world
        each = torch.zeros(world.size, dtype=torch.float64, device=world.device)
        each[world.rank] = own_seconds
        seconds = sum_over_ranks(each).tolist()
        rank, ratio = slowest(seconds)
        if world.is_first:
            for number, value in enumerate(seconds):
                metrics.RANK_STEP_SECONDS.labels(str(number)).set(value)
            metrics.SLOWEST_RANK.set(rank)
        before, self._told = self._told, rank if ratio > _SLOW else None
        if self._told is None or self._told == before:
            return []
        return [
            f"rank {rank} is slow: {seconds[rank]:.3f} s of its own work per step, {ratio:.1f} "
            "times the median rank's; all others wait for it"
        ]
