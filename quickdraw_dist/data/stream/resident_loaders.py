"""Loaders like `TrainLoader`, from drawings that are read once, before the first batch.

The order is the same, from the same `Order`, and proved by the same digest.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.data.stream.loader import TrainLoader
from quickdraw_dist.data.stream.resident import ResidentDrawings


class HostLoader(TrainLoader):
    """From the host's memory: blocks are copied into coming batches as when they are streamed,
    which is faster than to gather a batch from all over the memory."""

    def __init__(self, held: ResidentDrawings) -> None:
        """Nothing is read yet."""
        super().__init__(held.piece, held.order, held.share, held.memory, pin=False)
        self._held = held

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Batches from `first_step` to the end of an epoch; reads all drawings the first time.

        Raises:
            CorruptError, StorageError: from a shard that could not be read; never skipped.
        """
        self._held.fill()
        yield from super().epoch(epoch, first_step)


class DeviceLoader:
    """From the device's memory: a step is one gather there, and the host only says of what."""

    def __init__(self, held: ResidentDrawings) -> None:
        """Nothing is read yet."""
        self.order, self.share, self._held = held.order, held.share, held
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="plan")
        self._plans: dict[int, Future[NDArray[np.int64]]] = {}

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Batches from `first_step` to the end of an epoch; reads all drawings the first time.

        Raises:
            CorruptError, StorageError: from a shard that could not be read; never skipped.
        """
        held = self._held
        held.fill()
        places = self._plan(epoch).result()
        self._plans = {epoch + 1: self._plan(epoch + 1)}
        index = torch.from_numpy(places).to(held.device)  # one copy an epoch, none a step
        for step in range(first_step, self.order.steps):
            drawings = torch.index_select(held.drawings, 0, index[step])
            labels = torch.from_numpy(held.labels[places[step]].astype(np.int64))
            yield Batch(step, drawings, labels, held.rows[places[step]])

    def _plan(self, epoch: int) -> Future[NDArray[np.int64]]:
        return self._plans.get(epoch) or self._planner.submit(self._places, epoch)

    def _places(self, epoch: int) -> NDArray[np.int64]:
        """Of an epoch's drawings, (steps, drawings of this rank in a batch)."""
        order, share = self.order, self.share
        places = np.empty((order.steps, share.drawings), np.int64)
        at = 0
        for lane in share.lanes:
            low, high = share.cut(lane)
            line = np.concatenate(
                [
                    window.places(self._held.first[p.shard, p.block] for p in window.pieces)
                    for window in order.windows(epoch, lane)
                ]
            )
            shares = line[: order.steps * order.lane_batch].reshape(order.steps, order.lane_batch)
            places[:, at : at + high - low] = shares[:, low:high]
            at += high - low
        return places
