"""The order is what everything else trusts: exactly once, the same for any number of ranks."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import chain, combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.hashing import random64
from quickdraw_dist.data.order.lanes import resolve_lanes
from quickdraw_dist.data.order.order import Order, evaluation_pieces
from tests.support.data.orders import Location, lane_locations, orders

WORLDS = (1, 2, 3, 4, 7, 8)


def batches(order: Order, epoch: int, world_size: int) -> list[list[Location]]:
    """Every global batch of an epoch, assembled from the shares of `world_size` ranks."""
    lanes = [lane_locations(order, epoch, lane) for lane in range(order.lanes)]
    found = []
    for step in range(order.steps):
        batch = []
        for rank in range(world_size):
            share = order.share(rank, world_size)
            for lane in share.lanes:
                first, last = (step * order.lane_batch + offset for offset in share.cut(lane))
                assert 0 <= first < last <= len(lanes[lane])
                batch.extend(lanes[lane][first:last])
        found.append(batch)
    return found


def everything(order: Order) -> Counter[Location]:
    return Counter(
        (shard, block, at)
        for shard, blocks in enumerate(order.shards)
        for block, count in enumerate(blocks)
        for at in range(count)
    )


def small_order(seed: int = 1, global_batch: int = 8) -> Order:
    return Order(((5, 4), (6, 3), (7, 2)), global_batch, lanes=4, window_blocks=2, seed=seed)


@given(orders(), st.integers(0, 5))
def test_any_number_of_ranks_trains_on_the_same_batches(order: Order, epoch: int) -> None:
    """A run may resume with another number of ranks only because this holds."""
    expected = batches(order, epoch, 1)
    for world_size in WORLDS:
        if world_size <= order.global_batch:
            assert batches(order, epoch, world_size) == expected


@given(orders(), st.integers(0, 5))
def test_an_epoch_delivers_each_drawing_at_most_once(order: Order, epoch: int) -> None:
    """Exactly floor(N/G) * G different drawings are an epoch; N mod G are dropped, no more."""
    delivered = Counter(drawing for batch in batches(order, epoch, 1) for drawing in batch)
    total = sum(map(sum, order.shards))
    assert order.drawings == total
    assert order.steps == total // order.global_batch
    assert all(len(batch) == order.global_batch for batch in batches(order, epoch, 1))
    assert delivered.total() == len(delivered) == total // order.global_batch * order.global_batch
    assert not delivered - everything(order)
    assert order.dropped_drawings == total % order.global_batch == total - len(delivered)


@given(orders())
def test_lanes_own_the_same_drawings_in_every_epoch(order: Order) -> None:
    """A node's cache stays warm only if a lane never changes; together they are the split."""
    owned = [Counter(lane_locations(order, 0, lane)) for lane in range(order.lanes)]
    for epoch in (1, 2, 17):
        assert owned == [Counter(lane_locations(order, epoch, lane)) for lane in range(order.lanes)]
    assert sum(owned, Counter()) == everything(order)
    sizes = [drawings.total() for drawings in owned]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= order.steps * order.lane_batch


@given(orders(), st.integers(0, 5))
def test_locate_agrees_with_windows_and_shares(order: Order, epoch: int) -> None:
    """Random access must give the order that the loader delivers."""
    flat = [drawing for batch in batches(order, epoch, 1) for drawing in batch]
    assert [order.locate(epoch, position) for position in range(len(flat))] == flat


class Unhashable(tuple[tuple[int, ...], ...]):
    """45,000 blocks of the official size, which take a millisecond to hash."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]


def test_locate_never_looks_at_all_blocks() -> None:
    """It is called once per drawing: its cache must not hash or compare the blocks."""
    plain = small_order()
    order = Order(Unhashable(plain.shards), 8, lanes=4, window_blocks=2, seed=1)
    assert [order.locate(1, at) for at in range(24)] == [plain.locate(1, at) for at in range(24)]


@given(orders(), st.integers(0, 3))
def test_windows_fit_the_memory_planned_for_them(order: Order, epoch: int) -> None:
    """Memory is planned for W blocks of `longest_block`, and a piece beyond its block would read
    another drawing's bytes."""
    assert order.longest_block == max(count for blocks in order.shards for count in blocks)
    for lane in range(order.lanes):
        for window in order.windows(epoch, lane):
            assert 1 <= len(window.pieces) <= order.window_blocks
            assert window.count <= order.longest_window
            for piece in window.pieces:
                assert 0 <= piece.start < piece.stop <= order.shards[piece.shard][piece.block]


def test_a_window_keeps_to_shards() -> None:
    """One shard after the other: otherwise a lane would fetch its whole range at once."""
    order = Order(((8,) * 5,) * 12, global_batch=16, lanes=4, window_blocks=2, seed=3)
    for lane in range(order.lanes):
        shards = [p.shard for window in order.windows(1, lane) for p in window.pieces]
        changes = sum(a != b for a, b in pairwise(shards))
        assert changes == len(set(shards)) - 1


def test_epochs_and_seeds_differ() -> None:
    """A second epoch in the order of the first would be no shuffle; a seed must matter."""
    order = Order(((64,) * 4,) * 5, global_batch=100, lanes=4, window_blocks=2, seed=1)
    other = Order(order.shards, 100, lanes=4, window_blocks=2, seed=2)
    passes = [(order, 0), (order, 1), (order, 2), (other, 0)]
    flat = [list(chain(*batches(of, epoch, 1))) for of, epoch in passes]
    for mine, theirs in combinations(flat, 2):
        same = sum(a == b for a, b in zip(mine, theirs, strict=True))
        assert same < 60  # of 1,200; by chance about 4 where lanes own 320


def test_other_drawings_are_dropped_in_other_epochs() -> None:
    """What one epoch drops, another must train on, or the run never sees it."""
    order = Order(((16,) * 4,) * 5, global_batch=84, lanes=4, window_blocks=2, seed=1)
    assert order.dropped_drawings == 68
    missing = []
    for epoch in range(8):
        delivered = Counter(drawing for batch in batches(order, epoch, 1) for drawing in batch)
        missing.append(everything(order) - delivered)
        assert missing[-1].total() == 68
    never = missing[0]
    for other in missing[1:]:
        never = never & other
    assert not never


def test_drawings_move_inside_their_window() -> None:
    """Blocks are stored in one order; a window must deliver them in another, new in every epoch."""
    order = Order(((64,) * 4,), global_batch=32, lanes=1, window_blocks=4, seed=1)
    (first,), (second,) = order.windows(0, 0), order.windows(1, 0)
    for window in (first, second):
        shuffled = window.shuffled()
        assert sorted(shuffled) == list(range(256))
        assert np.abs(shuffled - np.arange(256)).mean() > 40  # 85 for a random permutation
    assert (first.shuffled() != second.shuffled()).mean() > 0.9


def test_the_order_is_frozen() -> None:
    """A checkpoint of one release must mean the same drawings in the next: never change these."""
    flat = [small_order().locate(epoch, position) for epoch in (0, 1) for position in range(24)]
    assert flat == GOLDEN


# fmt: off
GOLDEN: list[Location] = [
    (2, 0, 3), (2, 0, 5), (0, 0, 1), (0, 0, 2), (1, 0, 0), (0, 0, 4), (1, 0, 2), (1, 0, 5),
    (2, 0, 0), (2, 0, 1), (2, 0, 6), (0, 0, 3), (1, 0, 1), (0, 1, 0), (1, 0, 4), (1, 0, 3),
    (2, 0, 4), (2, 0, 2), (0, 0, 0), (2, 1, 1), (0, 1, 1), (0, 1, 3), (1, 1, 0), (1, 1, 2),
    # epoch 1
    (2, 0, 3), (2, 0, 2), (2, 0, 6), (0, 0, 1), (1, 0, 0), (0, 1, 1), (1, 0, 5), (1, 0, 4),
    (2, 0, 5), (2, 0, 0), (0, 0, 3), (0, 0, 0), (0, 1, 2), (0, 1, 0), (1, 0, 3), (1, 1, 0),
    (2, 0, 1), (2, 0, 4), (0, 0, 2), (2, 1, 1), (0, 1, 3), (1, 0, 1), (1, 1, 2), (1, 1, 1),
]
# fmt: on


# -- evaluation ----------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=5), min_size=1, max_size=6),
    st.integers(1, 40),
)
def test_evaluation_ranges_cover_the_split_once(shards: list[list[int]], world_size: int) -> None:
    """A metric over a split counts every drawing once, whatever the number of ranks."""
    locations: list[Location] = []
    sizes = []
    for rank in range(world_size):
        pieces = evaluation_pieces(shards, rank, world_size)
        assert all(len(piece) > 0 for piece in pieces)
        sizes.append(sum(map(len, pieces)))
        locations += [(p.shard, p.block, at) for p in pieces for at in range(p.start, p.stop)]
    assert locations == [
        (shard, block, at)
        for shard, blocks in enumerate(shards)
        for block, count in enumerate(blocks)
        for at in range(count)
    ]
    assert max(sizes) - min(sizes) <= 1


# -- refusals ---------------------------------------------------------------------------------


def test_a_split_smaller_than_a_batch_is_refused() -> None:
    """It would be an epoch of no steps; the refusal must say what fits."""
    with pytest.raises(RefusedError, match="27 drawings") as refused:
        small_order(global_batch=28)
    assert (refused.value.subject, refused.value.value) == ("--train.global_batch", 28)
    assert "--train.global_batch 27" in refused.value.remedy
    assert Order(small_order().shards, 27, 1, 2, 1).steps == 1


# -- the official size ------------------------------------------------------------------------


def test_the_official_size_fits_in_memory() -> None:
    """45.4 million drawings on 64 lanes: planning them must be cheap on every rank."""
    blocks = (1024,) * 57 + (58_484 - 57 * 1024,)
    tracemalloc.start()
    try:
        order = Order((blocks,) * 776, 4096, resolve_lanes("auto", 4096, 8), 4, seed=1)
        assert order.drawings == 776 * 58_484 == 45_383_584
        assert order.steps == 11_079
        last = order.steps * order.global_batch
        positions = [0, last - 1, *(random64(7, 300) % np.uint64(last)).tolist()]
        locations = {order.locate(3, int(position)) for position in positions}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(locations) == len(set(positions))
    for shard, block, index in locations:
        assert index < order.shards[shard][block]
    assert peak < 100e6
