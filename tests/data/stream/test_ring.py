"""The ring: indices name each drawing's place once, and what is put there is found there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.drawings.strokes.tiles import TilesPerDrawing
from quickdraw_dist.data.order.content_bytes import BitmapBytes
from quickdraw_dist.data.order.memory import least_batches
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.schedule import schedule
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.ring import Ring
from quickdraw_dist.data.stream.ring.bitmaps import BitmapRing, RingIndex
from quickdraw_dist.data.stream.ring.strokes import StrokeRing
from tests.support.data.datasets import CONTENTS
from tests.support.data.delivery import pairs
from tests.support.data.orders import (
    Location,
    Numbered,
    RankEpoch,
    location_of,
    numbers_in,
    orders,
    rank_epochs,
)

# -- where drawings go -----------------------------------------------------------------------------


@given(rank_epochs())
def test_a_shorter_ring_reuses_its_slots(case: RankEpoch) -> None:
    """An index is that of a ring for the whole epoch, with its step modulo the ring's steps."""
    order, share, epoch, first_step = case
    count, steps = share.drawings, least_batches(order)
    whole, ring = RingIndex(order, share, order.steps), RingIndex(order, share, steps)
    for scheduled in schedule(order, share, epoch, first_step):
        indices = whole.of(scheduled, first_step)
        spare = indices == whole.spare
        indices = indices // count % steps * count + indices % count
        assert np.array_equal(ring.of(scheduled, first_step)[~spare], indices[~spare])
        assert np.all(ring.of(scheduled, first_step)[spare] == ring.spare)


@given(orders(), st.integers(0, 3), st.data())
def test_every_position_is_filled_once_with_the_drawing_that_locate_names(
    order: Order, epoch: int, data: st.DataObject
) -> None:
    """By all ranks together: none is missing, and no thread writes where another does."""
    world_size = data.draw(st.integers(1, min(8, order.global_batch)))
    first_step = data.draw(st.integers(0, order.steps))
    filled: dict[int, Location] = {}
    for rank in range(world_size):
        share = order.share(rank, world_size)
        ring = RingIndex(order, share, order.steps)
        for scheduled in schedule(order, share, epoch, first_step):
            indices = ring.of(scheduled, first_step)
            pieces = scheduled.window.pieces
            stored = [(p.shard, p.block, at) for p in pieces for at in range(p.start, p.stop)]
            written = zip(stored, indices.tolist(), strict=True)
            delivered = [(drawing, index) for drawing, index in written if index != ring.spare]
            assert delivered, "read for nothing"
            for drawing, index in delivered:
                step, offset = divmod(index, share.drawings)
                assert scheduled.first_step <= step <= scheduled.last_step
                position = share.position(step) + offset
                assert position not in filled
                filled[position] = drawing
    want = range(first_step * order.global_batch, order.steps * order.global_batch)
    assert filled == {position: order.locate(epoch, position) for position in want}


# -- the memory ------------------------------------------------------------------------------------


def make_ring(content: str, order: Order, share: Share, steps: int) -> Ring:
    if content == "bitmaps":
        return BitmapRing(order, share, steps, pin=False)
    return StrokeRing(order, share, steps, TilesPerDrawing(2.0, 1.0), pin=False)


def short_lived(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same blocks in memory that is overwritten when the next one is requested, as a thread's
    scratch is."""
    for block in blocks:
        arrays: list[NDArray[np.integer]] = []

        def copy(array: NDArray[np.integer], kept: list[NDArray[np.integer]] = arrays):
            kept.append(array.copy())
            read_only = kept[-1].view()
            read_only.flags.writeable = False
            return read_only

        drawings = block.drawings
        if isinstance(drawings, Strokes):
            lasting = {field.name: copy(getattr(drawings, field.name)) for field in fields(Strokes)}
            yield Block(Strokes(**lasting), copy(block.labels), copy(block.rows))
        else:
            yield Block(copy(drawings), copy(block.labels), copy(block.rows))
        for array in arrays:
            array[...] = 77


@given(rank_epochs(), st.sampled_from(CONTENTS), st.data())
def test_batches_are_what_was_put(case: RankEpoch, content: str, data: st.DataObject) -> None:
    """Windows put in any order, as threads do; then every batch, from any step on."""
    order, share, epoch, first_step = case
    steps = max(order.steps, least_batches(order))  # all windows are put before the first batch
    ring, reader = make_ring(content, order, share, steps), Numbered(order, content)
    for _ in range(2):  # the first time, as if the epoch were left early
        ring.begin(first_step)
        for scheduled in data.draw(st.permutations(schedule(order, share, epoch, first_step))):
            ring.put(scheduled, short_lived(map(reader.piece, scheduled.window.pieces)))
    for step in range(first_step, order.steps):
        batch = ring.batch(step)
        assert batch.step == step
        want = [order.locate(epoch, share.position(step) + at) for at in range(share.drawings)]
        assert [location_of(*pair) for pair in pairs(batch)] == want
        assert numbers_in(batch.drawings) == [at & 255 for _, _, at in want]


def test_a_step_reuses_the_slot_of_an_earlier_one() -> None:
    """Bitmaps lie in as many slots as the ring has; strokes in those of the batches in use."""
    order = Order(((4,) * 8,), global_batch=2, lanes=1, window_blocks=1, seed=1)
    share = order.share(0, 1)
    bitmaps = make_ring("bitmaps", order, share, 3)
    begins = [bitmaps.batch(step).drawings[0].data_ptr() for step in range(9)]
    assert begins[:3] == begins[3:6] == begins[6:]
    assert len(set(begins)) == 3
    strokes, reader = make_ring("strokes", order, share, 3), Numbered(order, "strokes")
    strokes.begin(0)
    for scheduled in schedule(order, share, 0, 0):
        strokes.put(scheduled, map(reader.piece, scheduled.window.pieces))
    begins = [strokes.batch(step).drawings.tiles.data_ptr() for step in range(9)]
    assert begins[:2] == begins[2:4] == begins[6:8]
    assert len(set(begins)) == 2


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (7, 33)])
def test_a_bitmap_rings_bytes_are_those_of_its_arrays(steps: int, count: int) -> None:
    """The memory that is granted is counted with this number."""
    order = Order(((count,) * steps,), global_batch=count, lanes=1, window_blocks=1, seed=1)
    batch = BitmapRing(order, order.share(0, 1), steps, pin=False).batch(0)
    assert batch.rows.base is not None
    taken = batch.drawings.untyped_storage().nbytes() + batch.labels.untyped_storage().nbytes()
    want = BitmapBytes().ring(order, order.share(0, 1), steps, pin=False)
    assert taken + batch.rows.base.nbytes == want
