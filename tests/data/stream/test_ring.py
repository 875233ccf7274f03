"""The ring: indices name each drawing's place once, and what is written there is found there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.data.order.memory import least_batches, ring_bytes
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.schedule import schedule
from quickdraw_dist.data.shards import blocks
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.ring import Ring, RingIndex
from tests.support.data.orders import Location, RankEpoch, orders, rank_epochs

SPARE_ROW = 7777
"""Row of drawings that are not delivered."""


def numbered(numbers: list[int]) -> Block:
    """A block whose drawings, labels and rows follow from these numbers."""
    rows = np.array(numbers, np.uint32)
    pixels = (rows[:, None] + np.arange(784)).astype(np.uint8).reshape(-1, 28, 28)
    return Block(pixels, (rows % 345).astype(np.uint16), rows)


def holds(ring: Ring, step: int, numbers: list[int]) -> bool:
    """Whether a step's batch is the drawings of these numbers."""
    drawings, labels, rows = ring.batch(step)
    want = numbered(numbers)
    return (
        np.array_equal(drawings.numpy(), want.drawings)
        and np.array_equal(labels.numpy(), want.labels)
        and np.array_equal(rows, want.rows)
    )


def put(ring: Ring, indices: list[int], block: Block) -> None:
    """Write a block as a loader does."""
    ring.put_drawings(np.array(indices, np.int64), block.drawings)
    ring.put_identities(np.array(indices, np.int64), block.labels, block.rows)


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


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 20), st.data())
def test_batches_hold_what_was_written(
    steps: int, count: int, first: int, data: st.DataObject
) -> None:
    """In any order, in blocks of any length, among drawings that are not delivered."""
    spare, ring = steps * count, Ring(steps, count, pin=False)
    indices = [(first + step) % steps * count + at for step in range(steps) for at in range(count)]
    empty = data.draw(st.integers(0, 5))
    coming = data.draw(st.permutations(indices + [spare] * empty))
    size = data.draw(st.integers(1, len(coming)))
    for at in range(0, len(coming), size):
        here = coming[at : at + size]
        put(ring, here, numbered([SPARE_ROW if index == spare else index for index in here]))
    for step in range(first, first + steps):
        begin = step % steps * count
        assert holds(ring, step, list(range(begin, begin + count)))


def test_a_step_reuses_the_slot_of_an_earlier_one() -> None:
    """The other batches are not touched."""
    ring = Ring(3, 2, pin=False)
    for step in range(9):
        begin = step % 3 * 2
        put(ring, [begin + 1, begin], numbered([2 * step + 1, 2 * step]))
        for other in range(max(0, step - 2), step + 1):
            assert holds(ring, other, [2 * other, 2 * other + 1])
    assert ring.batch(8)[0].data_ptr() == ring.batch(5)[0].data_ptr() == ring.batch(2)[0].data_ptr()


def test_a_slice_of_a_read_only_block_is_copied() -> None:
    """A piece is written from the scratch it was decoded to: it begins anywhere in it."""
    decoded = blocks.decode(blocks.encode(numbered(list(range(12))), "0-0", "none"), 12)
    assert not decoded.drawings.flags.writeable
    assert not decoded.drawings.flags.owndata
    ring = Ring(1, 5, pin=False)
    put(ring, [0, 1, 2, 3, 4], decoded.slice(3, 8))
    assert holds(ring, 0, [3, 4, 5, 6, 7])


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (7, 33)])
def test_a_rings_bytes_are_those_of_its_arrays(steps: int, count: int) -> None:
    """The memory that is granted is counted with this number."""
    drawings, labels, rows = Ring(steps, count, pin=False).batch(0)
    assert rows.base is not None
    taken = drawings.untyped_storage().nbytes() + labels.untyped_storage().nbytes()
    assert taken + rows.base.nbytes == ring_bytes(steps, count, pin=False)
