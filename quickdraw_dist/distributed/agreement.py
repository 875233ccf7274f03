"""What the ranks of a run agree on: at every step, whether one of them was asked to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from quickdraw_dist.base.errors import TrainingError
from quickdraw_dist.distributed import ranks as distributed
from quickdraw_dist.distributed.signals import StopSignal

T = TypeVar("T")


class Agreement:
    """A signal to any rank stops all ranks at the same place.

    They agree (MAX) over a gloo group of their own, on processor tensors. A round is begun before
    a batch and read after it, so neither the device nor the batch waits for it.
    """

    def __init__(
        self, stop: StopSignal, seconds: float, phase: Callable[[], str], patience_seconds: float
    ) -> None:
        """All ranks call it together.

        Args:
            stop: sees this rank's signals.
            seconds: the time that one leaves it.
            phase: what this rank is busy with, for the message when that has passed.
            patience_seconds: with a rank that does not come to the end of its batch.
        """
        self._stop, self._seconds, self._phase = stop, seconds, phase
        self._patience_seconds = patience_seconds
        self._group = distributed.processor_group(patience_seconds)
        self.stopped = False
        """Whether they agreed to stop; the same on every rank."""

    def meet(self) -> None:
        """Wait for all ranks."""
        if self._group is not None:
            dist.barrier(group=self._group)

    def together(self, items: Iterable[T]) -> Iterator[T]:
        """Items until all ranks are through with theirs, which need not be equally many, or have
        agreed to stop.

        Raises:
            TrainingError: a rank is gone.
        """
        rest = iter(items)
        while not self.stopped:
            item = next(rest, None)
            # With the first batch at hand: whoever waits for it still may leave alone.
            self._stop.begin(self.meet, self._seconds, self._phase)
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
                "another rank is gone, or has stood still for "
                f"{timedelta(seconds=self._patience_seconds)}; nothing is saved, the last "
                "checkpoint stands, and the same command goes on from there"
            ) from None
