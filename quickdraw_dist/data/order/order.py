"""Which drawing at which step: a pure function of block sizes, seed, epoch and position.

Fixed for the whole run: the shards, permuted, form a line of N drawings, cut into L lanes. Lane l
owns drawings [l*N/L, (l+1)*N/L) of it, so a node that keeps its lanes keeps its shards.

New in every epoch: a lane permutes its shards, then the blocks of each shard, then the drawings
inside windows of W blocks.

Global batch t takes the next G/L drawings of every lane, lane after lane; a rank trains on one
contiguous part of it. Nothing here depends on the number of ranks but the cut of that part, so a
run can stop on 3 machines and go on on 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.hashing import key64, permutation
from quickdraw_dist.data.order.share import Share


@dataclass(frozen=True)
class Piece:
    """Drawings `start` to `stop` of one block: a lane may begin and end inside a block."""

    shard: int
    block: int
    start: int
    stop: int

    def __len__(self) -> int:
        """Drawings in the piece."""
        return self.stop - self.start


@dataclass(frozen=True)
class Window:
    """Pieces of one lane that are shuffled together in one epoch."""

    start: int  # position in the lane of the window's first drawing
    pieces: tuple[Piece, ...]
    key: int

    @cached_property
    def count(self) -> int:
        """Drawings in the window."""
        return sum(len(piece) for piece in self.pieces)

    def shuffled(self) -> NDArray[np.int64]:
        """Order of delivery, (count,): indices into the pieces laid end to end."""
        return permutation(self.count, self.key)

    def places(self, blocks: Iterable[int]) -> NDArray[np.int64]:
        """Where the window's drawings lie, (count,), in order of delivery; `blocks` are the places
        of the first drawing of every piece's block."""
        lying = [
            np.arange(first + piece.start, first + piece.stop, dtype=np.int64)
            for piece, first in zip(self.pieces, blocks, strict=True)
        ]
        return np.asarray(np.concatenate(lying)[self.shuffled()])


def resolve_lanes(lanes: int | str, global_batch: int, world_size: int) -> int:
    """The number of lanes of a run; 'auto' is gcd(global batch, 64), or 512 beyond 64 ranks (the
    next power of two beyond 512).

    Raises:
        RefusedError: naming the setting, when the batch, lanes and ranks do not fit together.
    """
    most = 64 if world_size <= 64 else max(512, 1 << (world_size - 1).bit_length())
    auto = math.gcd(global_batch, most)
    fitting = global_batch if auto >= world_size else -(-global_batch // most) * most
    advice = f"--stream.lanes auto with --train.global_batch {fitting} is right"
    if global_batch < world_size:
        raise RefusedError(
            f"--train.global_batch {global_batch}: smaller than the {world_size} ranks, some would "
            f"have no drawing; {advice}"
        )
    if lanes == "auto":
        if auto < world_size:
            raise RefusedError(
                f"--train.global_batch {global_batch}: makes gcd({global_batch}, {most}) = {auto} "
                f"lanes, fewer than the {world_size} ranks; {advice}"
            )
        return auto
    lanes = int(lanes)
    if global_batch % lanes:
        raise RefusedError(
            f"--stream.lanes {lanes}: does not divide --train.global_batch {global_batch}; {advice}"
        )
    if lanes < world_size:
        raise RefusedError(f"--stream.lanes {lanes}: fewer than the {world_size} ranks; {advice}")
    return lanes


@dataclass(frozen=True, eq=False)  # one of 45,000 blocks takes a millisecond to hash or compare
class Order:
    """The order of one split for one run.

    Args:
        shards: for every shard, the drawings of each of its blocks.
        global_batch: drawings in a step, over all ranks.
        lanes: L; divides global_batch.
        window_blocks: W.
        seed: of the run.
    """

    shards: tuple[tuple[int, ...], ...]
    global_batch: int
    lanes: int
    window_blocks: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse a split that cannot fill one batch."""
        if self.drawings < self.global_batch:
            raise RefusedError(
                f"--train.global_batch {self.global_batch}: the split has only {self.drawings:,} "
                f"drawings, not one whole batch; at most {self.drawings:,} is right"
            )

    @cached_property
    def drawings(self) -> int:
        """N, drawings in the split."""
        return sum(map(sum, self.shards))

    @property
    def steps(self) -> int:
        """Global batches in an epoch, the same on every rank."""
        return self.drawings // self.global_batch

    @property
    def dropped_drawings(self) -> int:
        """Drawings that an epoch leaves out, other ones each time."""
        return self.drawings % self.global_batch

    @property
    def lane_batch(self) -> int:
        """Drawings of one lane in a global batch."""
        return self.global_batch // self.lanes

    @cached_property
    def longest_block(self) -> int:
        """Most drawings in any block."""
        return max(max(blocks) for blocks in self.shards)

    @property
    def longest_window(self) -> int:
        """No window has more drawings."""
        return min(self.window_blocks * self.longest_block, -(-self.drawings // self.lanes))

    @cached_property
    def _line(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The line's blocks as (shard, block) rows (n, 2), and their first positions (n + 1,)."""
        shards = permutation(len(self.shards), key64(self.seed, "line"))
        blocks = [(int(s), b) for s in shards for b in range(len(self.shards[s]))]
        counts = [self.shards[s][b] for s, b in blocks]
        return np.array(blocks, np.int64), np.concatenate([[0], np.cumsum(counts)])

    def lane_range(self, lane: int) -> tuple[int, int]:
        """The part [start, stop) of the line that a lane owns for the whole run."""
        return lane * self.drawings // self.lanes, (lane + 1) * self.drawings // self.lanes

    def lane_pieces(self, lane: int) -> list[Piece]:
        """A lane's blocks in the order of the line, the first and last cut to its range."""
        blocks, firsts = self._line
        start, stop = self.lane_range(lane)
        low, high = np.searchsorted(firsts, start, "right") - 1, np.searchsorted(firsts, stop)
        first = firsts[low:high]
        starts = np.maximum(start - first, 0)
        stops = np.minimum(stop, firsts[low + 1 : high + 1]) - first
        cut = np.column_stack((blocks[low:high], starts, stops))
        return [Piece(*piece) for piece in cut.tolist()]

    @cached_property
    def _lanes(self) -> dict[int, list[list[Piece]]]:
        """Pieces of lanes that were asked for, shard by shard: the same in all epochs."""
        return {}

    def _shards_of(self, lane: int) -> list[list[Piece]]:
        if lane not in self._lanes:
            pieces = groupby(self.lane_pieces(lane), key=lambda piece: piece.shard)
            self._lanes[lane] = [list(of_shard) for _, of_shard in pieces]
        return self._lanes[lane]

    def windows(self, epoch: int, lane: int) -> tuple[Window, ...]:
        """A lane's windows of an epoch, in order of delivery."""
        by_shard = self._shards_of(lane)
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

    def share(self, rank: int, world_size: int) -> Share:
        """Return a rank's share of every global batch."""
        return Share.of_rank(self.global_batch, rank, world_size, self.lanes)

    def locate(self, epoch: int, position: int) -> tuple[int, int, int]:
        """(shard, block, index in the block) of the drawing at a position of an epoch, O(1)."""
        step, within = divmod(position, self.global_batch)
        lane, offset = divmod(within, self.lane_batch)
        at = step * self.lane_batch + offset
        windows, starts = _lane_epoch(self, epoch, lane)
        window = windows[int(np.searchsorted(starts, at, "right")) - 1]
        index = int(window.shuffled()[at - window.start])
        for piece in window.pieces:
            if index < len(piece):
                return piece.shard, piece.block, piece.start + index
            index -= len(piece)
        raise AssertionError("a window's order stays inside its pieces")


@lru_cache(maxsize=1024)
def _lane_epoch(
    order: Order, epoch: int, lane: int
) -> tuple[tuple[Window, ...], NDArray[np.int64]]:
    windows = order.windows(epoch, lane)
    return windows, np.array([window.start for window in windows])


def evaluation_pieces(shards: Sequence[Sequence[int]], rank: int, world_size: int) -> list[Piece]:
    """A rank's contiguous part of a split for evaluation: every drawing on exactly one rank."""
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
