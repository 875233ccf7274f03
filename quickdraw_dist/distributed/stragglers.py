"""How long every rank's own work takes, and which rank the others wait for.

The time of a whole step says nothing: all ranks have the same, since each waits for the slowest
in the gradients' all-reduce.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

from quickdraw_dist.base.telemetry import metrics as telemetry
from quickdraw_dist.base.telemetry.device_timer import mark
from quickdraw_dist.distributed.ranks import World, sum_over_ranks

_SLOW = 1.5
"""Times the median: a rank that is worth a line."""

Mark = torch.cuda.Event | float


class WorkClock:
    """Seconds from a step's begin until this rank's own gradients are there: augmentation,
    forward and backward passes, not the other ranks' and not the optimizer, which is alike on all.

    On CUDA both ends are events on the device's stream, which nothing waits for.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """The gradient of a model's first parameter is the last that a backward pass makes."""
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
        """A step begins."""
        self._begun, self._ready = self._mark(), None

    def end(self) -> None:
        """All of its gradients were asked for."""
        if self._begun is not None and self._ready is not None:
            self._steps.append((self._begun, self._ready))

    def mean_seconds(self) -> float:
        """Of the steps since the last call. The device must have come past them."""
        steps, self._steps = self._steps, []
        seconds = [_elapsed(begun, ready) for begun, ready in steps]
        return statistics.fmean(seconds) if seconds else 0.0


def _elapsed(begun: Mark, ready: Mark) -> float:
    if isinstance(begun, float) or isinstance(ready, float):
        return float(ready) - float(begun)  # type: ignore[arg-type]
    return float(begun.elapsed_time(ready)) / 1000


def slowest(seconds: Sequence[float]) -> tuple[int, float]:
    """The rank with the most work, and how many times the median's that is; pure."""
    rank = max(range(len(seconds)), key=seconds.__getitem__)
    return rank, seconds[rank] / max(statistics.median_low(seconds), 1e-9)


class Stragglers:
    """Compares the ranks every few steps; the first one's endpoint shows all."""

    def __init__(self, world: World) -> None:
        """Nobody was slow so far."""
        self._world = world
        self._told: int | None = None

    def look(self, own_seconds: float) -> list[str]:
        """Lines about a rank that became slow; all ranks call it together."""
        world = self._world
        each = torch.zeros(world.size, dtype=torch.float64, device=world.device)
        each[world.rank] = own_seconds
        seconds = sum_over_ranks(each).tolist()
        rank, ratio = slowest(seconds)
        if world.is_first:
            for number, value in enumerate(seconds):
                telemetry.RANK_STEP_SECONDS.labels(str(number)).set(value)
            telemetry.SLOWEST_RANK.set(rank)
        before, self._told = self._told, rank if ratio > _SLOW else None
        if self._told is None or self._told == before:
            return []
        return [
            f"rank {rank} is slow: {seconds[rank]:.3f} s of its own work a step, {ratio:.1f} times "
            "the median rank's; all others wait for it"
        ]
