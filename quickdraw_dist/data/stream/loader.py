"""The streaming loader: threads decode windows of the order into a ring of coming batches.

Threads, not worker processes: reading, decompressing and copying release the interpreter lock, a
batch needs no transport, and nothing is forked under a store client.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future

from quickdraw_dist.base.storage import Scratch
from quickdraw_dist.data.drawings.strokes.tiles import TilesPerDrawing
from quickdraw_dist.data.order.content_bytes import BATCHES_IN_USE
from quickdraw_dist.data.order.memory import LoaderMemory
from quickdraw_dist.data.order.order import Order, Piece
from quickdraw_dist.data.order.schedule import ScheduledWindow, schedule
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.data.stream.prefetch import ShardPrefetch, decoding_threads
from quickdraw_dist.data.stream.ring import Ring
from quickdraw_dist.data.stream.ring.bitmaps import BitmapRing
from quickdraw_dist.data.stream.ring.strokes import StrokeRing


class TrainLoader:
    """Yields a rank's batches of any epoch, from any step on. One loader serves a whole run."""

    def __init__(
        self, read: Callable[[Piece, Scratch], Block], order: Order, share: Share,
        memory: LoaderMemory, *, per_drawing: TilesPerDrawing | None, pin: bool,
        prefetch: Callable[[Iterable[int]], ShardPrefetch] | None = None,
    ) -> None:  # fmt: skip
        """Allocate the ring, pinned for CUDA if `pin`. Any thread calls `read`; `prefetch` opens
        the prefetch of an epoch's shards, None if nothing is fetched. `per_drawing` is of a dataset
        of strokes; None for bitmaps."""
        self.order, self.share = order, share
        self._read, self._memory, self._prefetch = read, memory, prefetch
        # Kept from epoch to epoch.
        self._ring: Ring
        if per_drawing is None:
            self._ring = BitmapRing(order, share, memory.batches, pin)
        else:
            self._ring = StrokeRing(order, share, memory.batches, per_drawing, pin)
        self._scratch = Scratch()
        self._in_use: deque[Batch] = deque()

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches from `first_step` to the end of an epoch.

        Their memory is reused: see Ownership in `stream/ring`.

        Raises:
            CorruptError, StorageError: a shard could not be read; none is skipped.
        """
        self._release(keep=0)  # batches of the epoch before
        self._ring.begin(first_step)
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
                    future = pool.submit(self._decode, scheduled, shards)
                    decoding.append((scheduled.first_step, future))
                while decoding and decoding[0][0] <= step:
                    decoding.popleft()[1].result()
                self._in_use.append(self._ring.batch(step))
                yield self._in_use[-1]

    def _release(self, keep: int) -> None:
        """Release all but the last `keep` batches; their ring slots may be overwritten."""
        while len(self._in_use) > keep:
            if (copied := self._in_use.popleft().copied) is not None:
                copied.synchronize()  # the device may still be reading it

    def _decode(self, scheduled: ScheduledWindow, shards: ShardPrefetch | None) -> None:
        """Decode a window into the ring. One task per window: one per block would wake threads
        four times as often."""
        self._ring.put(scheduled, self._blocks(scheduled, shards))

    def _blocks(self, scheduled: ScheduledWindow, shards: ShardPrefetch | None) -> Iterator[Block]:
        for piece in scheduled.window.pieces:
            if shards is not None:
                shards.wait(piece.shard)
            yield self._read(piece, self._scratch)
