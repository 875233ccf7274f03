"""A rank's share of a global batch: the one thing in the order that depends on the world size.

A global batch of G drawings is L slices, one per lane, G/L drawings each. Rank r of n takes the
positions [r*G/n, (r+1)*G/n): whole slices where n divides L, else it cuts the first and the last.

    G = 12, L = 3, n = 2     lane 0      lane 1      lane 2
    position in the batch    0 1 2 3     4 5 6 7     8 9 10 11
    share of rank 0          0 1 2 3     4 5
    share of rank 1                          6 7     8 9 10 11
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Positions [start, stop) of every global batch, fixed for as long as the world size is.

    Shares of all ranks tile the batch and differ in size by one drawing at most.
    """

    start: int
    stop: int
    global_batch: int  # drawings per step, over all ranks
    lane_batch: int  # of them per lane; the whole batch where data has no lanes

    @classmethod
    def of_rank(cls, global_batch: int, rank: int, world_size: int, lanes: int = 1) -> Share:
        """Return the share of one rank; `lanes` divides `global_batch`."""
        start, stop = (r * global_batch // world_size for r in (rank, rank + 1))
        return cls(start, stop, global_batch, global_batch // lanes)

    @property
    def drawings(self) -> int:
        """Drawings of this rank per step."""
        return self.stop - self.start

    @property
    def lanes(self) -> range:
        """Lanes that the rank reads from."""
        return range(self.start // self.lane_batch, -(-self.stop // self.lane_batch))

    def cut(self, lane: int) -> tuple[int, int]:
        """Return which of a lane's drawings per step are the rank's: [low, high) of the lane's
        slice of a batch; all of them, [0, lane_batch), for all but the first and last lane."""
        first = lane * self.lane_batch
        return max(self.start - first, 0), min(self.stop - first, self.lane_batch)

    def position(self, step: int) -> int:
        """Return the position in the epoch of the share's first drawing in `step`."""
        return step * self.global_batch + self.start
