"""Batches in the order of `order.py`: threads decode windows, one thread gathers batches.

Threads and no worker processes: reading, decompressing and gathering release the interpreter
lock, a batch needs no transport, and nothing is forked under a store client.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.drawings import SIDE
from quickdraw_dist.stream.order import Order, Piece, Window, mix_identities, rank_part, sequential
from quickdraw_dist.stream.reader import SplitReader


@dataclass
class Batch:
    """A rank's part of one global batch. Valid until the next one is asked for."""

    step: int  # in the epoch
    drawings: torch.Tensor  # (n, 28, 28) uint8, pinned when asked for
    labels: torch.Tensor  # (n,) int64
    rows: NDArray[np.uint32]  # (n,): with the labels, the drawings' identities
    digest: int  # order digest of these drawings, modulo 2^64
    copied: torch.cuda.Event | None = None  # set by who copies asynchronously: done reading


def reader_threads(setting: int, local_world_size: int) -> int:
    """Decoding threads of one rank."""
    return setting or max(1, min(8, (os.cpu_count() or 1) // local_world_size))


@dataclass(frozen=True)
class _Slot:
    """Room for one decoded window."""

    drawings: NDArray[np.uint8]  # (capacity, 28, 28)
    labels: NDArray[np.uint16]  # (capacity,)
    rows: NDArray[np.uint32]  # (capacity,)

    @staticmethod
    def of(capacity: int) -> _Slot:
        return _Slot(
            np.empty((capacity, SIDE, SIDE), np.uint8),
            np.empty(capacity, np.uint16),
            np.empty(capacity, np.uint32),
        )


class _Lane:
    """One lane in one epoch: the window being delivered and the next one, being decoded."""

    def __init__(
        self,
        reader: SplitReader,
        pool: ThreadPoolExecutor,
        windows: tuple[Window, ...],
        slots: tuple[_Slot, _Slot],
        share: int,
    ) -> None:
        """`share` of 1000 of a window passes before the next is fetched: lanes take turns."""
        self._reader, self._pool, self._windows = reader, pool, windows
        self._slots, self._share = slots, share
        self._loading: dict[int, list[Future[None]]] = {}
        self._at = -1
        self._order = np.empty(0, np.int64)

    def prepare(self, position: int) -> None:
        """Start decoding the window that holds a position."""
        starts = [window.start for window in self._windows]
        self._at = int(np.searchsorted(starts, position, "right")) - 1
        self._fetch(self._at)
        self._order = self._windows[self._at].shuffled()

    def gather(
        self, first: int, last: int, drawings: NDArray[np.uint8], labels: NDArray[np.uint16],
        rows: NDArray[np.uint32],
    ) -> None:  # fmt: skip
        """Copy the drawings at positions [first, last) of the lane, in order."""
        done = first
        while done < last:
            window = self._windows[self._at]
            if done >= window.start + window.count:  # beyond it where ranks share the lane
                self._at += 1
                self._order = self._windows[self._at].shuffled()
                continue
            self._wait(self._at)
            stop = min(last, window.start + window.count)
            index = self._order[done - window.start : stop - window.start]
            out = slice(done - first, stop - first)
            slot = self._slots[self._at % 2]
            np.take(slot.drawings, index, axis=0, out=drawings[out], mode="clip")
            np.take(slot.labels, index, out=labels[out], mode="clip")
            np.take(slot.rows, index, out=rows[out], mode="clip")
            done = stop
            if (done - window.start) * 1000 >= self._share * window.count:
                self._fetch(self._at + 1)

    def _fetch(self, number: int) -> None:
        """Decode a window into the slot that the one before the current has left."""
        if number in self._loading or number >= len(self._windows):
            return
        for earlier in [n for n in self._loading if n <= number - 2]:
            for future in self._loading.pop(earlier):
                future.result()  # passed over undelivered, its slot may still be written to
        slot = self._slots[number % 2]
        futures, start = [], 0
        for piece in self._windows[number].pieces:
            part = slice(start, start + len(piece))
            futures.append(
                self._pool.submit(
                    self._reader.read,
                    piece,
                    slot.drawings[part],
                    slot.labels[part],
                    slot.rows[part],
                )
            )
            start += len(piece)
        self._loading[number] = futures

    def _wait(self, number: int) -> None:
        self._fetch(number)
        for future in self._loading[number]:
            future.result()
        self._loading[number] = []


class TrainLoader:
    """A rank's batches of any epoch, from any step on."""

    def __init__(
        self, reader: SplitReader, order: Order, *, rank: int, world_size: int, threads: int,
        prefetch: int, pin: bool,
    ) -> None:  # fmt: skip
        """`prefetch` batches are ready ahead of the one in use; `pin` is for CUDA."""
        self.order = order
        self._reader, self._threads = reader, threads
        self._start, self._stop = rank_part(order.global_batch, rank, world_size)
        # Kept from epoch to epoch: a lane is its rank's for the whole run.
        self._slots = {
            lane: (_Slot.of(order.window_capacity), _Slot.of(order.window_capacity))
            for lane, _, _ in order.segments(0, self._start, self._stop)
        }
        count = self._stop - self._start
        self._buffers = [
            (
                torch.empty((count, SIDE, SIDE), dtype=torch.uint8, pin_memory=pin),
                torch.empty(count, dtype=torch.int64, pin_memory=pin),
            )
            for _ in range(prefetch + 1)
        ]

    @property
    def part(self) -> tuple[int, int]:
        """The rank's part [start, stop) of every global batch."""
        return self._start, self._stop

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Batches from `first_step` to the end of an epoch.

        Raises:
            CorruptError, StorageError: from the shard that could not be read; never skipped.
        """
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue()
        free: queue.Queue[tuple[int, torch.cuda.Event | None] | None] = queue.Queue()
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

    def _produce(
        self,
        epoch: int,
        first_step: int,
        free: queue.Queue[tuple[int, torch.cuda.Event | None] | None],
        ready: queue.Queue[Batch | BaseException | None],
    ) -> None:
        """Gather batches into free buffers until the epoch or the consumer ends."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        try:
            lanes = self._lanes(epoch, first_step, pool)
            for step in range(first_step, self.order.steps):
                if (given := free.get()) is None:
                    return
                slot, copied = given
                if copied is not None:
                    copied.synchronize()  # the device may still be reading this buffer
                ready.put(self._batch(epoch, step, lanes, slot))
            ready.put(None)
        except BaseException as error:
            ready.put(error)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _lanes(self, epoch: int, first_step: int, pool: ThreadPoolExecutor) -> dict[int, _Lane]:
        if first_step >= self.order.steps:
            return {}
        segments = self.order.segments(first_step, self._start, self._stop)
        lanes = {}
        for turn, (lane, first, _) in enumerate(segments):
            share = 500 * turn // len(segments)
            windows = self.order.windows(epoch, lane)
            lanes[lane] = _Lane(self._reader, pool, windows, self._slots[lane], share)
            lanes[lane].prepare(first)
        return lanes

    def _batch(self, epoch: int, step: int, lanes: dict[int, _Lane], slot: int) -> Batch:
        drawings, labels = self._buffers[slot]
        count = self._stop - self._start
        classes, rows = np.empty(count, np.uint16), np.empty(count, np.uint32)
        pixels, at = drawings.numpy(), 0
        for lane, first, last in self.order.segments(step, self._start, self._stop):
            part = slice(at, at + last - first)
            lanes[lane].gather(first, last, pixels[part], classes[part], rows[part])
            at += last - first
        labels.numpy()[:] = classes
        position = step * self.order.global_batch + self._start
        digest = mix_identities(epoch, position, classes, rows)
        return Batch(step, drawings, labels, rows, digest)


def evaluation_batches(
    reader: SplitReader, *, rank: int, world_size: int, batch: int, threads: int
) -> Iterator[Batch]:
    """A rank's contiguous part of a split, every drawing once, in batches of at most `batch`."""
    pieces = [
        Piece(p.shard, p.block, start, min(start + batch, p.stop))
        for p in sequential(reader.block_counts, rank, world_size)
        for start in range(p.start, p.stop, batch)
    ]

    def load(at: int) -> Batch:
        count = len(pieces[at])
        drawings = torch.empty((count, SIDE, SIDE), dtype=torch.uint8)
        labels, rows = np.empty(count, np.uint16), np.empty(count, np.uint32)
        reader.read(pieces[at], drawings.numpy(), labels, rows)
        return Batch(at, drawings, torch.from_numpy(labels.astype(np.int64)), rows, digest=0)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    ahead: list[Future[Batch]] = []
    try:
        for at in range(len(pieces)):
            ahead.append(pool.submit(load, at))
            if len(ahead) > 2 * threads:
                yield ahead.pop(0).result()
        for future in ahead:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
