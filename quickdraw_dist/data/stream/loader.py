"""The streaming loader: threads decode windows of the order into a ring of coming batches.

Threads, not worker processes: reading, decompressing and copying release the interpreter lock, a
batch needs no transport, and nothing is forked under a store client.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future

import numpy as np

from quickdraw_dist.base.storage import Scratch
from quickdraw_dist.data.order.memory import BATCHES_IN_USE, LoaderMemory
from quickdraw_dist.data.order.order import Order, Piece
from quickdraw_dist.data.order.schedule import ScheduledWindow, schedule
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.data.stream.prefetch import ShardPrefetch, decoding_threads
from quickdraw_dist.data.stream.ring import Ring, RingIndex


class TrainLoader:
    """Yields a rank's batches of any epoch, from any step on. One loader serves a whole run."""

    def __init__(
        self, read: Callable[[Piece, Scratch], Block], order: Order, share: Share,
        memory: LoaderMemory, *, pin: bool,
        prefetch: Callable[[Iterable[int]], ShardPrefetch] | None = None,
    ) -> None:  # fmt: skip
        """Allocate the ring, pinned for CUDA if `pin`. Any thread calls `read`; `prefetch` opens
        the prefetch of an epoch's shards, None if nothing is fetched."""
        self.order, self.share = order, share
        self._read, self._memory, self._prefetch = read, memory, prefetch
        # Kept from epoch to epoch.
        self._ring = Ring(memory.batches, share.drawings, pin)
        self._ring_index = RingIndex(order, share, memory.batches)
        self._scratch = Scratch()
        self._in_use: deque[Batch] = deque()

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches from `first_step` to the end of an epoch.

        Their memory is reused: see Ownership in `stream/ring.py`.

        Raises:
            CorruptError, StorageError: a shard could not be read; none is skipped.
        """
        self._release(keep=0)  # batches of the epoch before
        waiting = deque(schedule(self.order, self.share, epoch, first_step))
        decoding: deque[tuple[int, Future[None]]] = deque()
        shards = None
        if self._prefetch is not None and waiting:
            shards = self._prefetch(piece.shard for it in waiting for piece in it.window.pieces)
        with decoding_threads(self._memory.threads, shards) as pool:
            for step in range(first_step, self.order.steps):
                self._release(keep=BATCHES_IN_USE - 1)
                last = step - BATCHES_IN_USE + self._ring.steps  # reuses the slot just released
                while waiting and waiting[0].last_step <= last:
                    scheduled = waiting.popleft()
                    if shards is not None:
                        for piece in scheduled.window.pieces:
                            shards.reach(piece.shard)
                    future = pool.submit(self._decode, scheduled, first_step, shards)
                    decoding.append((scheduled.first_step, future))
                while decoding and decoding[0][0] <= step:
                    decoding.popleft()[1].result()
                self._in_use.append(Batch(step, *self._ring.batch(step)))
                yield self._in_use[-1]

    def _release(self, keep: int) -> None:
        """Release all but the last `keep` batches; their ring slots may be overwritten."""
        while len(self._in_use) > keep:
            if (copied := self._in_use.popleft().copied) is not None:
                copied.synchronize()  # the device may still be reading it

    def _decode(
        self, scheduled: ScheduledWindow, first_step: int, shards: ShardPrefetch | None
    ) -> None:
        """Decode a window into the ring. One task per window: one per block would wake threads
        four times as often."""
        indices, at = self._ring_index.of(scheduled, first_step), 0
        labels, rows = [], []
        for piece in scheduled.window.pieces:
            if shards is not None:
                shards.wait(piece.shard)
            block = self._read(piece, self._scratch)
            self._ring.put_drawings(indices[at : at + len(piece)], block.pixels)
            labels.append(block.labels.tobytes())  # a copy: the next read reuses the scratch
            rows.append(block.rows.tobytes())
            at += len(piece)
        self._ring.put_identities(
            indices,
            np.frombuffer(b"".join(labels), np.uint16),
            np.frombuffer(b"".join(rows), np.uint32),
        )
