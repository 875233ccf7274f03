"""What a rank reads, when, and where it goes: every place of every batch is filled, once, and the
least ring is enough."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.data.order.memory import BATCHES_IN_USE, least_batches
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.schedule import Places, schedule, steps_per_window
from quickdraw_dist.data.order.share import Share
from tests.support.orders import Place, orders

Key = tuple[int, int]
"""Lane, and where in it a window starts."""


@st.composite
def cases(draw: st.DrawFn) -> tuple[Order, Share, int, int]:
    """An order, the share of any rank of any world, an epoch, and a step to begin with."""
    order = draw(orders())
    world_size = draw(st.integers(1, min(8, order.global_batch)))
    share = order.share(draw(st.integers(0, world_size - 1)), world_size)
    return order, share, draw(st.integers(0, 3)), draw(st.integers(0, order.steps))


@given(cases())
def test_what_is_delivered_from_is_scheduled_and_nothing_else(
    case: tuple[Order, Share, int, int],
) -> None:
    """A window too many is read for nothing; one that is missing is a batch with holes."""
    order, share, epoch, first_step = case
    needed: dict[Key, list[int]] = {}
    for step in range(first_step, order.steps):
        for lane in share.lanes:
            first, last = (step * order.lane_batch + offset for offset in share.cut(lane))
            for window in order.windows(epoch, lane):
                if max(first, window.start) < min(last, window.start + window.count):
                    needed.setdefault((lane, window.start), []).append(step)
    needs = schedule(order, share, epoch, first_step)
    assert len(needs) == len(needed)
    for need in needs:
        assert need.window in order.windows(epoch, need.lane)
        steps = needed[need.lane, need.window.start]
        assert need.first_step == min(steps)
        assert max(steps) <= need.last_step <= min(max(steps) + 1, order.steps - 1)
        assert need.last_step - need.first_step < steps_per_window(order)
    firsts = [need.first_step for need in needs]
    assert firsts == sorted(firsts)


@given(cases())
def test_a_ring_of_fewer_steps_is_gone_round(
    case: tuple[Order, Share, int, int],
) -> None:
    """A place is that of a ring for the whole epoch, with its step taken modulo the ring's."""
    order, share, epoch, first_step = case
    count, steps = share.drawings, least_batches(order)
    whole, ring = Places(order, share, order.steps), Places(order, share, steps)
    for need in schedule(order, share, epoch, first_step):
        numbers = whole.of(need, first_step)
        elsewhere = numbers == whole.nowhere
        numbers = numbers // count % steps * count + numbers % count
        assert np.array_equal(ring.of(need, first_step)[~elsewhere], numbers[~elsewhere])
        assert np.all(ring.of(need, first_step)[elsewhere] == ring.nowhere)


@given(orders(), st.integers(0, 3), st.data())
def test_every_place_is_filled_once_with_the_drawing_that_locate_names(
    order: Order, epoch: int, data: st.DataObject
) -> None:
    """By all ranks together: none is forgotten, and no thread writes where another does."""
    world_size = data.draw(st.integers(1, min(8, order.global_batch)))
    first_step = data.draw(st.integers(0, order.steps))
    filled: dict[int, Place] = {}
    for rank in range(world_size):
        share = order.share(rank, world_size)
        places = Places(order, share, order.steps)
        for need in schedule(order, share, epoch, first_step):
            numbers = places.of(need, first_step)
            assert numbers.shape == (need.window.count,)
            lying = [
                (p.shard, p.block, at) for p in need.window.pieces for at in range(p.start, p.stop)
            ]
            came = zip(lying, numbers.tolist(), strict=True)
            mine = [(drawing, number) for drawing, number in came if number != places.nowhere]
            assert mine, "read for nothing"
            for drawing, number in mine:
                step, place = divmod(number, share.drawings)
                assert need.first_step <= step <= need.last_step
                position = share.position(step) + place
                assert position not in filled
                filled[position] = drawing
    want = range(first_step * order.global_batch, order.steps * order.global_batch)
    assert filled == {position: order.locate(epoch, position) for position in want}


def fill_on_paper(order: Order, share: Share, epoch: int, first_step: int, batches: int) -> None:
    """An epoch with a ring of that many batches, of which `BATCHES_IN_USE` are in use at every
    step: a window is filled in when its last batch has a place."""
    needs = deque(schedule(order, share, epoch, first_step))
    for step in range(first_step, order.steps):
        while needs and needs[0].last_step <= step - BATCHES_IN_USE + batches:
            needs.popleft()
        assert not needs or needs[0].first_step > step, f"step {step} waits for itself"


@given(cases())
def test_the_least_ring_is_always_enough(case: tuple[Order, Share, int, int]) -> None:
    """The least memory that is granted must never make a run wait for itself."""
    fill_on_paper(*case, least_batches(case[0]))


def test_less_is_not_enough() -> None:
    """What the test above is worth: with a batch less the same loader stands still. Of windows of
    5 over shares of 3, one that begins at the end of a share is spread over three."""
    order = Order(((5,) * 6,) * 2, global_batch=6, lanes=2, window_blocks=1, seed=1)
    share = order.share(0, 1)
    needs = schedule(order, share, 0, 0)
    assert [(need.first_step, need.last_step) for need in needs[::2]] == [
        (0, 1), (1, 3), (3, 4), (5, 6), (6, 8), (8, 9)
    ]  # fmt: skip
    assert (steps_per_window(order), least_batches(order)) == (3, 4)
    fill_on_paper(order, share, 0, 0, 4)
    with pytest.raises(AssertionError, match="step 1 waits for itself"):
        fill_on_paper(order, share, 0, 0, 3)
