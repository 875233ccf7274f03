"""Shares of ranks: they tile every batch, as evenly as can be."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from quickdraw_dist.data.order.share import Share


@given(st.integers(1, 10_000), st.integers(1, 600))
def test_shares_tile_the_batch_and_differ_by_one(global_batch: int, world_size: int) -> None:
    """The mean over ranks is the mean over the batch only for shares this even."""
    assume(world_size <= global_batch)
    shares = [Share.of_rank(global_batch, rank, world_size) for rank in range(world_size)]
    assert shares[0].start == 0
    assert shares[-1].stop == global_batch
    assert all(a.stop == b.start for a, b in pairwise(shares))
    sizes = {share.drawings for share in shares}
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 40), st.integers(1, 30), st.data())
def test_cuts_of_its_lanes_are_the_share(lanes: int, lane_batch: int, data: st.DataObject) -> None:
    """Lane after lane, without a gap: the order inside a batch must not depend on the ranks."""
    world_size = data.draw(st.integers(1, lanes * lane_batch))
    rank = data.draw(st.integers(0, world_size - 1))
    share = Share.of_rank(lanes * lane_batch, rank, world_size, lanes)
    positions = []
    for lane in share.lanes:
        low, high = share.cut(lane)
        assert 0 <= low < high <= lane_batch
        positions += range(lane * lane_batch + low, lane * lane_batch + high)
    assert positions == list(range(share.start, share.stop))
    assert share.position(3) == 3 * lanes * lane_batch + share.start
