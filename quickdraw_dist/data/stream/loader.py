"""Batches in the order of `order.py`: threads decode windows into coming batches.

Threads and no worker processes: reading, decompressing and copying release the interpreter lock,
a batch needs no transport, and nothing is forked under a store client.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from quickdraw_dist.base.storage import Scratch
from quickdraw_dist.data.order.memory import BATCHES_IN_USE, LoaderMemory
from quickdraw_dist.data.order.order import Order, Piece
from quickdraw_dist.data.order.schedule import Places, ScheduledWindow, schedule
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.data.stream.prefetch import ShardsAhead
from quickdraw_dist.data.stream.ring import Ring


class TrainLoader:
    """A rank's batches of any epoch, from any step on, made of pieces that `read` gives."""

    def __init__(
        self, read: Callable[[Piece, Scratch], Block], order: Order, share: Share,
        memory: LoaderMemory, *, pin: bool,
        ahead: Callable[[Iterable[int]], ShardsAhead] | None = None,
    ) -> None:  # fmt: skip
        """`pin` is for CUDA; `ahead`, if shards are fetched, what fetches those of an epoch."""
        self.order, self.share = order, share
        self._read, self._memory, self._ahead = read, memory, ahead
        # Kept from epoch to epoch.
        self._ring = Ring(memory.batches, share.drawings, pin)
        self._places = Places(order, share, memory.batches)
        self._scratch = Scratch()
        self._in_use: deque[Batch] = deque()  # handed out, and maybe on their way to the device

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Batches from `first_step` to the end of an epoch.

        Raises:
            CorruptError, StorageError: from the shard that could not be read; never skipped.
        """
        self._let_go(keep=0)  # of the epoch before
        waiting = deque(schedule(self.order, self.share, epoch, first_step))
        filling: deque[tuple[int, Future[None]]] = deque()
        with self._threads(waiting, first_step) as begin:
            for step in range(first_step, self.order.steps):
                self._let_go(keep=BATCHES_IN_USE - 1)
                last = step - BATCHES_IN_USE + self._ring.steps  # lies where no batch in use does
                while waiting and waiting[0].last_step <= last:
                    need = waiting.popleft()
                    filling.append((need.first_step, begin(need)))
                while filling and filling[0][0] <= step:
                    filling.popleft()[1].result()
                self._in_use.append(Batch(step, *self._ring.batch(step)))
                yield self._in_use[-1]

    def _let_go(self, keep: int) -> None:
        """Batches but the last `keep` have been used: others may be made where they are."""
        while len(self._in_use) > keep:
            if (copied := self._in_use.popleft().copied) is not None:
                copied.synchronize()  # the device may still be reading it

    @contextlib.contextmanager
    def _threads(
        self, needs: Collection[ScheduledWindow], first_step: int
    ) -> Iterator[Callable[[ScheduledWindow], Future[None]]]:
        """What has a window decoded by a thread; all threads have ended when this is left, and
        nothing writes into the ring any more."""
        ahead = None
        if self._ahead is not None and needs:
            ahead = self._ahead(piece.shard for need in needs for piece in need.window.pieces)
        pool = ThreadPoolExecutor(self._memory.threads, thread_name_prefix="decode")

        def begin(need: ScheduledWindow) -> Future[None]:
            if ahead is not None:
                for piece in need.window.pieces:
                    ahead.reach(piece.shard)
            return pool.submit(self._fill, need, first_step, ahead)

        try:
            yield begin
        finally:
            if ahead is not None:
                ahead.close()
            pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, need: ScheduledWindow, first_step: int, ahead: ShardsAhead | None) -> None:
        """Decode a window into its batches, a task of its own: one a block wakes threads four
        times as often. A lane that begins or ends inside a block decodes all of it."""
        places, at = self._places.of(need, first_step), 0
        labels, rows = [], []
        for piece in need.window.pieces:
            if ahead is not None:
                ahead.wait(piece.shard)
            block = self._read(piece, self._scratch)
            self._ring.put_drawings(places[at : at + len(piece)], block.drawings)
            labels.append(block.labels.tobytes())  # which is lent
            rows.append(block.rows.tobytes())
            at += len(piece)
        self._ring.put_identities(
            places,
            np.frombuffer(b"".join(labels), np.uint16),
            np.frombuffer(b"".join(rows), np.uint32),
        )
