"""Batches in the order of `order.py`: threads decode windows, one thread gathers batches.

Threads and no worker processes: reading, decompressing and gathering release the interpreter
lock, a batch needs no transport, and nothing is forked under a store client.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from quickdraw_dist.stream.ahead import ShardsAhead
from quickdraw_dist.stream.arena import Arena
from quickdraw_dist.stream.batch import Batch, room
from quickdraw_dist.stream.memory import BATCHES, LoaderMemory
from quickdraw_dist.stream.order import Order, mix_identities, rank_part
from quickdraw_dist.stream.reader import SplitReader
from quickdraw_dist.stream.schedule import Need, schedule
from quickdraw_dist.stream.windows import Windows

_Free = queue.Queue[tuple[int, torch.cuda.Event | None] | None]
_Ready = queue.Queue[Batch | BaseException | None]


class TrainLoader:
    """A rank's batches of any epoch, from any step on, streamed from shards."""

    def __init__(
        self, reader: SplitReader, order: Order, memory: LoaderMemory, *, rank: int,
        world_size: int, pin: bool, shards_ahead: int = 0,
    ) -> None:  # fmt: skip
        """`pin` is for CUDA; `shards_ahead` of those in use are fetched into the node cache."""
        self.order, self.part = order, rank_part(order.global_batch, rank, world_size)
        self._reader, self._memory, self._shards_ahead = reader, memory, shards_ahead
        # Kept from epoch to epoch.
        self._arena = Arena(memory.buffers, order.longest_block)
        start, stop = self.part
        self._buffers = [room(stop - start, pin) for _ in range(BATCHES)]

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Batches from `first_step` to the end of an epoch.

        Raises:
            CorruptError, StorageError: from the shard that could not be read; never skipped.
        """
        ready: _Ready = queue.Queue()
        free: _Free = queue.Queue()
        for slot in range(len(self._buffers)):
            free.put((slot, None))
        producer = threading.Thread(
            target=self._produce, args=(epoch, first_step, free, ready), daemon=True, name="loader"
        )
        producer.start()
        slot = 0
        try:
            while (batch := ready.get()) is not None:
                if isinstance(batch, BaseException):
                    raise batch
                yield batch
                free.put((slot, batch.copied))
                slot = (slot + 1) % len(self._buffers)
        finally:
            free.put(None)
            producer.join()

    def _produce(self, epoch: int, first_step: int, free: _Free, ready: _Ready) -> None:
        """Gather batches into free buffers until the epoch or the consumer ends."""
        try:
            needs = schedule(self.order, epoch, first_step, *self.part)
            with self._open(needs) as windows:
                for step in range(first_step, self.order.steps):
                    if (given := free.get()) is None:
                        return
                    slot, copied = given
                    if copied is not None:
                        copied.synchronize()  # the device may still be reading this buffer
                    ready.put(self._batch(epoch, step, windows, slot))
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    @contextlib.contextmanager
    def _open(self, needs: list[Need]) -> Iterator[Windows]:
        """Threads that read; all have ended when this is left, and nothing writes any more."""
        self._arena.clear()
        ahead = None
        if (cache := self._reader.cache) is not None and needs:
            shards = (piece.shard for need in needs for piece in need.window.pieces)
            fetchers = self._memory.fetchers
            ahead = ShardsAhead(self._reader, cache, shards, fetchers, self._shards_ahead)
        pool = ThreadPoolExecutor(self._memory.threads, thread_name_prefix="decode")
        try:
            yield Windows(self._reader, self._arena, pool, needs, ahead)
        finally:
            if ahead is not None:
                ahead.close()
            pool.shutdown(wait=True, cancel_futures=True)

    def _batch(self, epoch: int, step: int, windows: Windows, slot: int) -> Batch:
        drawings, labels = self._buffers[slot]
        start, stop = self.part
        pixels = drawings.numpy()
        classes, rows = np.empty(stop - start, np.uint16), np.empty(stop - start, np.uint32)
        # All lanes in one gather; what lies beyond the end of a lane's window is done after it,
        # when the window's room is free for the next one.
        index = np.zeros(stop - start, np.int64)
        crossing, at = [], 0
        for lane, first, last in self.order.segments(step, start, stop):
            window = windows.at(lane, first)
            here = min(last, window.stop)
            index[at : at + here - first] = window.places(first, here)
            at += last - first
            if here < last:
                crossing.append((lane, here, last, at))
        self._arena.gather(index, pixels, classes, rows)
        for lane, first, last, end in crossing:
            while first < last:
                window = windows.at(lane, first)
                here = min(last, window.stop)
                part = slice(end - last + first, end - last + here)
                places = window.places(first, here)
                self._arena.gather(places, pixels[part], classes[part], rows[part])
                first = here
        labels.numpy()[:] = classes
        digest = mix_identities(epoch, step * self.order.global_batch + start, classes, rows)
        return Batch(step, drawings, labels, rows, digest)
