"""Loaders of resident drawings."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.base.storage import Scratch
from quickdraw_dist.data.order.order import Piece
from quickdraw_dist.data.order.schedule import schedule
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.data.stream.loader import TrainLoader
from quickdraw_dist.data.stream.resident.drawings import ResidentDrawings
from quickdraw_dist.data.stream.resident.memory import ResidentBitmaps
from quickdraw_dist.data.stream.ring.bitmaps import RingIndex


class HostLoader(TrainLoader):
    """Makes batches from bitmaps in the host's memory, window by window like the streaming loader:
    faster than gathering each batch from addresses all over the memory."""

    def __init__(self, resident: ResidentDrawings) -> None:
        order, share = resident.order, resident.share
        super().__init__(self._held, order, share, resident.memory, per_drawing=None, pin=False)
        self._resident = resident

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Like `TrainLoader.epoch`; the first call reads all drawings."""
        self._resident.fill()
        yield from super().epoch(epoch, first_step)

    def _held(self, piece: Piece, _: Scratch) -> Block:
        """Return the drawings of a piece without a copy."""
        resident, held = self._resident, slice(*self._resident.range_of(piece))
        assert isinstance(resident.drawings, ResidentBitmaps), "`resident_loader` chooses"
        pixels = resident.drawings.pixels.numpy()
        return Block(pixels[held], resident.labels[held], resident.rows[held])


class DeviceLoader:
    """Makes batches on the device: a step is one gather there; the host only says of what."""

    def __init__(self, resident: ResidentDrawings) -> None:
        self.order, self.share, self._resident = resident.order, resident.share, resident
        self._ring_index = RingIndex(self.order, self.share, self.order.steps)
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="plan")
        self._plans: dict[int, Future[NDArray[np.int64]]] = {}

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Like `TrainLoader.epoch`; the first call reads all drawings."""
        resident = self._resident
        resident.fill()
        indices = self._plan(epoch).result()
        self._plans = {epoch + 1: self._plan(epoch + 1)}
        on_device = torch.from_numpy(indices).to(resident.device)  # one copy per epoch
        pin = resident.device.type == "cuda"
        for step in range(first_step, self.order.steps):
            here = indices[step]
            drawings = resident.drawings.batch(here, on_device[step])
            # Pinned for the copy to the device; torch reuses it only once that copy is done.
            labels = torch.empty(self.share.drawings, dtype=torch.int64, pin_memory=pin)
            labels.numpy()[:] = resident.labels[here]
            yield Batch(step, drawings, labels, resident.rows[here])

    def _plan(self, epoch: int) -> Future[NDArray[np.int64]]:
        return self._plans.get(epoch) or self._planner.submit(self._indices, epoch)

    def _indices(self, epoch: int) -> NDArray[np.int64]:
        """Return where an epoch's drawings lie in the resident arrays, (steps, share.drawings).

        The epoch is laid out like a ring with a slot for every step."""
        indices = np.empty(self._ring_index.spare + 1, np.int64)
        for scheduled in schedule(self.order, self.share, epoch, 0):
            ranges = map(self._resident.range_of, scheduled.window.pieces)
            held = [np.arange(start, stop, dtype=np.int64) for start, stop in ranges]
            indices[self._ring_index.of(scheduled, 0)] = np.concatenate(held)
        return indices[:-1].reshape(self.order.steps, self.share.drawings)


def resident_loader(resident: ResidentDrawings) -> HostLoader | DeviceLoader:
    """Return the faster loader: strokes are so small that one gather is it on the host, too."""
    bitmaps = resident.per_drawing is None
    return (
        HostLoader(resident)
        if bitmaps and resident.device.type == "cpu"
        else DeviceLoader(resident)
    )
