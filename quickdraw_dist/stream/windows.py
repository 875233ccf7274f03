"""A rank's windows of one epoch, decoded ahead by threads in the order in which they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.stream.ahead import ShardsAhead
from quickdraw_dist.stream.arena import Arena
from quickdraw_dist.stream.order import Window
from quickdraw_dist.stream.reader import SplitReader
from quickdraw_dist.stream.schedule import Need


@dataclass
class OpenWindow:
    """A window that has buffers."""

    start: int  # position in the lane of the first drawing
    stop: int
    buffers: list[int]
    order: Future[NDArray[np.int64]]  # (stop - start,) places in the arena, once all is decoded

    def places(self, first: int, last: int) -> NDArray[np.int64]:
        """Where in the arena the drawings at lane positions [first, last) are; waits for them.

        Raises:
            CorruptError, StorageError: from a block that could not be read.
        """
        return self.order.result()[first - self.start : last - self.start]


class Windows:
    """Decodes as far ahead as the arena has room; what is used up makes room for the next."""

    def __init__(
        self,
        reader: SplitReader,
        arena: Arena,
        pool: ThreadPoolExecutor,
        needs: Sequence[Need],
        ahead: ShardsAhead | None = None,
    ) -> None:
        """`ahead` fetches the shards of a remote dataset."""
        self._reader, self._arena, self._pool, self._ahead = reader, arena, pool, ahead
        self._needs = deque(needs)
        self._open: dict[int, deque[OpenWindow]] = {need.lane: deque() for need in needs}
        self._top_up()

    def at(self, lane: int, position: int) -> OpenWindow:
        """The window of a lane that holds a position; those before it make room for others."""
        windows = self._open[lane]
        while windows and windows[0].stop <= position:
            self._arena.give_back(windows.popleft().buffers)
            self._top_up()
        return windows[0]

    def _top_up(self) -> None:
        while self._needs:
            need = self._needs[0]
            buffers = self._arena.take(len(need.window.pieces))
            if buffers is None:
                return
            self._needs.popleft()
            if self._ahead is not None:
                for piece in need.window.pieces:
                    self._ahead.reach(piece.shard)
            start = need.window.start
            self._open[need.lane].append(
                OpenWindow(
                    start,
                    start + need.window.count,
                    buffers,
                    self._pool.submit(self._decode, need.window, buffers),
                )
            )

    def _decode(self, window: Window, buffers: list[int]) -> NDArray[np.int64]:
        """Decode a window, a task of its own: one a block wakes threads four times as often.
        Returns its order of delivery, (count,), as places in the arena. A lane that begins or ends
        inside a block decodes it whole and delivers its own part."""
        for piece, buffer in zip(window.pieces, buffers, strict=True):
            if self._ahead is not None:
                self._ahead.wait(piece.shard)
            count = self._reader.block_counts[piece.shard][piece.block]
            self._reader.read(piece.shard, piece.block, *self._arena.views(buffer, count))
        return window.places(buffer * self._arena.capacity for buffer in buffers)
