"""Which drawing comes at which position: a pure function of block sizes, seed, epoch and position.

A split of N drawings lies in shards, each a sequence of blocks. The order is made in three steps.

Fixed for the run. The seed permutes the shards; laid end to end they are the line. L lanes cut the
line into equal ranges: lane l owns drawings [l*N/L, (l+1)*N/L). A node that keeps its lanes keeps
its shards, so its cache stays warm from epoch to epoch.

    line     | shard 2           | shard 0           | shard 1           |  N drawings
    blocks   | 0  | 1  | 2  | 3  | 0  | 1  | 2  | 3  | 0  | 1  | 2  | 3  |
    lanes    | lane 0    | lane 1    | lane 2    | lane 3    | lane 4    |  N/L each

New in every epoch. A lane permutes its shards, then the blocks of each shard, then the drawings
inside windows of W consecutive blocks. A lane therefore reads one shard after the other, and the
order needs W blocks of memory per lane.

Position to drawing. Global batch t takes the next G/L drawings of every lane, lane after lane:
position t*G + l*(G/L) + i of the epoch is drawing t*(G/L) + i of lane l. An epoch is floor(N/G)
batches; the N mod G drawings at the ends of the lanes are dropped, other ones in every epoch.

Nothing here depends on the world size, so a run may stop on 3 ranks and resume on 8: a rank trains
on a share of each batch (`share.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.base.errors import RefusedError, flag
from quickdraw_dist.base.hashing import key64, permutation
from quickdraw_dist.data.order.share import Share


@dataclass(frozen=True)
class Piece:
    """Drawings [start, stop) of one block; not the whole block where a lane begins or ends."""

    shard: int
    block: int
    start: int
    stop: int

    def __len__(self) -> int:
        """Drawings in the piece."""
        return self.stop - self.start


@dataclass(frozen=True)
class Window:
    """Pieces of one lane whose drawings are permuted together in one epoch."""

    start: int  # position in the lane of the window's first drawing
    pieces: tuple[Piece, ...]  # in the order they are read
    key: int  # of the permutation

    @cached_property
    def count(self) -> int:
        """Drawings in the window."""
        return sum(len(piece) for piece in self.pieces)

    def shuffled(self) -> NDArray[np.int64]:
        """Return the order of delivery, (count,): indices into the pieces laid end to end."""
        return permutation(self.count, self.key)


@dataclass(frozen=True, eq=False)  # hashing or comparing 45,000 blocks takes a millisecond
class Order:
    """The order of one split in one run.

    Attributes:
        shards: for every shard, the drawings of each of its blocks.
        global_batch: G, drawings per step over all ranks.
        lanes: L; divides G.
        window_blocks: W, blocks per window.
        seed: of the run.

    Raises:
        RefusedError: the split has less than one global batch.
    """

    shards: tuple[tuple[int, ...], ...]
    global_batch: int
    lanes: int
    window_blocks: int
    seed: int

    def __post_init__(self) -> None:
        if self.drawings < self.global_batch:
            raise RefusedError(
                flag("train.global_batch"),
                self.global_batch,
                f"the split has only {self.drawings:,} drawings, less than one batch",
                f"Use {flag('train.global_batch', self.drawings)} or less",
                drawings=self.drawings,
            )

    # -- sizes, fixed for the run ------------------------------------------------------------------

    @cached_property
    def drawings(self) -> int:
        """N, drawings in the split."""
        return sum(map(sum, self.shards))

    @property
    def steps(self) -> int:
        """Global batches per epoch, the same on every rank."""
        return self.drawings // self.global_batch

    @property
    def dropped_drawings(self) -> int:
        """Drawings that an epoch does not deliver, other ones in every epoch."""
        return self.drawings % self.global_batch

    @property
    def lane_batch(self) -> int:
        """G/L, drawings of one lane per step."""
        return self.global_batch // self.lanes

    @cached_property
    def longest_block(self) -> int:
        """Most drawings in any block."""
        return max(max(blocks) for blocks in self.shards)

    @property
    def longest_window(self) -> int:
        """Upper bound of the drawings in any window."""
        return min(self.window_blocks * self.longest_block, -(-self.drawings // self.lanes))

    def share(self, rank: int, world_size: int) -> Share:
        """Return a rank's share of every global batch."""
        return Share.of_rank(self.global_batch, rank, world_size, self.lanes)

    # -- the line and its lanes, fixed for the run -------------------------------------------------

    @cached_property
    def _line(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The line's blocks as (shard, block) rows, (n, 2), and their starts in the line and its
        end, (n + 1,)."""
        shards = permutation(len(self.shards), key64(self.seed, "line"))
        blocks = [(int(s), b) for s in shards for b in range(len(self.shards[s]))]
        counts = [self.shards[s][b] for s, b in blocks]
        return np.array(blocks, np.int64), np.concatenate([[0], np.cumsum(counts)])

    def lane_range(self, lane: int) -> tuple[int, int]:
        """Return the range [start, stop) of the line that a lane owns."""
        return lane * self.drawings // self.lanes, (lane + 1) * self.drawings // self.lanes

    def lane_pieces(self, lane: int) -> list[Piece]:
        """Return a lane's blocks in the order of the line, the first and last cut to its range."""
        blocks, starts_in_line = self._line
        start, stop = self.lane_range(lane)
        low = np.searchsorted(starts_in_line, start, "right") - 1
        high = np.searchsorted(starts_in_line, stop)
        first = starts_in_line[low:high]
        starts = np.maximum(start - first, 0)
        stops = np.minimum(stop, starts_in_line[low + 1 : high + 1]) - first
        cut = np.column_stack((blocks[low:high], starts, stops))
        return [Piece(*piece) for piece in cut.tolist()]

    @cached_property
    def _pieces_by_shard(self) -> dict[int, list[list[Piece]]]:
        """Pieces of the lanes requested so far, shard by shard."""
        return {}

    def _lane_shards(self, lane: int) -> list[list[Piece]]:
        if lane not in self._pieces_by_shard:
            pieces = groupby(self.lane_pieces(lane), key=lambda piece: piece.shard)
            self._pieces_by_shard[lane] = [list(of_shard) for _, of_shard in pieces]
        return self._pieces_by_shard[lane]

    # -- the windows, new in every epoch -----------------------------------------------------------

    def windows(self, epoch: int, lane: int) -> tuple[Window, ...]:
        """Return a lane's windows of an epoch, in order of delivery."""
        by_shard = self._lane_shards(lane)
        key = key64(self.seed, "lane", epoch, lane)
        pieces: list[Piece] = []
        for at in permutation(len(by_shard), key):
            shard = by_shard[int(at)]
            inner = permutation(len(shard), key64(key, shard[0].shard))
            pieces.extend(shard[int(i)] for i in inner)
        windows, start = [], 0
        for number, first in enumerate(range(0, len(pieces), self.window_blocks)):
            chosen = tuple(pieces[first : first + self.window_blocks])
            windows.append(Window(start, chosen, key64(key, "window", number)))
            start += windows[-1].count
        return tuple(windows)

    def locate(self, epoch: int, position: int) -> tuple[int, int, int]:
        """Return (shard, block, index in the block) of the drawing at a position of an epoch.

        O(1) in the size of the epoch: one window is permuted. The windows of the last 1,024
        (epoch, lane) pairs are cached.
        """
        step, within = divmod(position, self.global_batch)
        lane, offset = divmod(within, self.lane_batch)
        at = step * self.lane_batch + offset
        windows, starts = _cached_windows(self, epoch, lane)
        window = windows[int(np.searchsorted(starts, at, "right")) - 1]
        index = int(window.shuffled()[at - window.start])
        for piece in window.pieces:
            if index < len(piece):
                return piece.shard, piece.block, piece.start + index
            index -= len(piece)
        raise AssertionError("a window's permutation stays inside its pieces")


@lru_cache(maxsize=1024)
def _cached_windows(
    order: Order, epoch: int, lane: int
) -> tuple[tuple[Window, ...], NDArray[np.int64]]:
    windows = order.windows(epoch, lane)
    return windows, np.array([window.start for window in windows])


def evaluation_pieces(shards: Sequence[Sequence[int]], rank: int, world_size: int) -> list[Piece]:
    """Return a rank's contiguous range of a split in stored order, every drawing on one rank.

    Args:
        shards: for every shard, the drawings of each of its blocks.
        rank: of `world_size`; ranges differ in length by one drawing at most.
    """
    total = sum(map(sum, shards))
    start, stop = rank * total // world_size, (rank + 1) * total // world_size
    pieces, first = [], 0
    for shard, blocks in enumerate(shards):
        for block, count in enumerate(blocks):
            low, high = max(start - first, 0), min(stop - first, count)
            if low < high:
                pieces.append(Piece(shard, block, low, high))
            first += count
    return pieces
