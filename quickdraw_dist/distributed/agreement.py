"""Stop together: at every step the ranks agree whether one of them was asked to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from quickdraw_dist.base.errors import TrainingError
from quickdraw_dist.distributed import ranks
from quickdraw_dist.distributed.signals import StopSignal

T = TypeVar("T")


class Agreement:
    """Stops all ranks at the same step when any of them gets a signal.

    The ranks agree (MAX) over a gloo group of their own, on CPU tensors. A round is started before
    a batch and read after it, so neither the device nor the batch waits for it.
    """

    def __init__(
        self,
        stop: StopSignal,
        shutdown_seconds: float,
        phase: Callable[[], str],
        timeout_seconds: float,
    ) -> None:
        """Create the group; all ranks call it together.

        Args:
            stop: sees this rank's signals.
            shutdown_seconds: how long a signal leaves this rank.
            phase: returns what this rank is busy with, for the message when the time is up.
            timeout_seconds: how long a round waits for a rank that does not finish its batch.
        """
        self._stop, self._shutdown_seconds, self._phase = stop, shutdown_seconds, phase
        self._timeout_seconds = timeout_seconds
        self._group = ranks.processor_group(timeout_seconds)
        self.stopped = False
        """Whether the ranks agreed to stop; the same on every rank."""

    def meet(self) -> None:
        """Wait for all ranks."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def until_stopped(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items until every rank has exhausted its own (lengths may differ) or all ranks
        have agreed to stop.

        Raises:
            TrainingError: a rank is gone.
        """
        rest = iter(items)
        while not self.stopped:
            item = next(rest, None)
            # Only once the first batch is here: a rank that waits for it may still leave alone.
            self._stop.begin(self.meet, self._shutdown_seconds, self._phase)
            # (2,): whether to stop, and whether anything is left to do.
            round_ = torch.tensor([self._stop.received, item is not None], dtype=torch.int32)
            work = None
            if self._group is not None:
                work = dist.all_reduce(round_, dist.ReduceOp.MAX, self._group, async_op=True)
            if item is not None:
                yield item
            if work is not None:
                self._wait(work)
            stop, busy = round_.tolist()
            if stop:
                self.stopped = True
                self._stop.obey()
            if not busy:
                return

    def _wait(self, work: dist.Work) -> None:
        try:
            work.wait()
        except RuntimeError:
            raise TrainingError(
                "another rank is gone, or has stalled for "
                f"{timedelta(seconds=self._timeout_seconds)}. Nothing is saved, the last "
                "checkpoint stands; the same command continues from there"
            ) from None
