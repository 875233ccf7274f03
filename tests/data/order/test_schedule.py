"""What a rank reads, when, and where it goes: every place of every batch is filled, once, and the
least ring is enough."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.data.order.memory import BATCHES_IN_USE, least_batches
from quickdraw_dist.data.order.order import Order, rank_part
from quickdraw_dist.data.order.schedule import Places, schedule, steps_per_window
from tests.support.orders import Place, orders

Key = tuple[int, int]
"""Lane, and where in it a window starts."""


@st.composite
def positions(draw: st.DrawFn) -> tuple[Order, int, int, tuple[int, int]]:
    """An order, an epoch, a step to begin with, and the part of any rank of any world."""
    order = draw(orders())
    world_size = draw(st.integers(1, min(8, order.global_batch)))
    part = rank_part(order.global_batch, draw(st.integers(0, world_size - 1)), world_size)
    return order, draw(st.integers(0, 3)), draw(st.integers(0, order.steps)), part


@given(positions())
def test_what_is_delivered_from_is_scheduled_and_nothing_else(
    position: tuple[Order, int, int, tuple[int, int]],
) -> None:
    """A window too many is read for nothing; one that is missing is a batch with holes."""
    order, epoch, first_step, part = position
    needed: dict[Key, list[int]] = {}
    for step in range(first_step, order.steps):
        for lane, first, last in order.segments(step, *part):
            for window in order.windows(epoch, lane):
                if max(first, window.start) < min(last, window.start + window.count):
                    needed.setdefault((lane, window.start), []).append(step)
    needs = schedule(order, epoch, first_step, *part)
    assert len(needs) == len(needed)
    for need in needs:
        assert need.window in order.windows(epoch, need.lane)
        steps = needed[need.lane, need.window.start]
        assert need.first_step == min(steps)
        assert max(steps) <= need.last_step <= min(max(steps) + 1, order.steps - 1)
        assert need.last_step - need.first_step < steps_per_window(order)
    firsts = [need.first_step for need in needs]
    assert firsts == sorted(firsts)


@given(positions())
def test_a_ring_of_fewer_steps_is_gone_round(
    position: tuple[Order, int, int, tuple[int, int]],
) -> None:
    """A place is that of a ring for the whole epoch, with its step taken modulo the ring's."""
    order, epoch, first_step, part = position
    count, steps = part[1] - part[0], least_batches(order)
    whole, ring = Places(order, *part, order.steps), Places(order, *part, steps)
    for need in schedule(order, epoch, first_step, *part):
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
        part = rank_part(order.global_batch, rank, world_size)
        places = Places(order, *part, order.steps)
        for need in schedule(order, epoch, first_step, *part):
            numbers = places.of(need, first_step)
            assert numbers.shape == (need.window.count,)
            lying = [
                (p.shard, p.block, at) for p in need.window.pieces for at in range(p.start, p.stop)
            ]
            came = zip(lying, numbers.tolist(), strict=True)
            mine = [(drawing, number) for drawing, number in came if number != places.nowhere]
            assert mine, "read for nothing"
            for drawing, number in mine:
                step, place = divmod(number, part[1] - part[0])
                assert need.first_step <= step <= need.last_step
                position = step * order.global_batch + part[0] + place
                assert position not in filled
                filled[position] = drawing
    want = range(first_step * order.global_batch, order.steps * order.global_batch)
    assert filled == {position: order.locate(epoch, position) for position in want}


def fill_on_paper(
    order: Order, epoch: int, first_step: int, part: tuple[int, int], batches: int
) -> None:
    """An epoch with a ring of that many batches, of which `BATCHES_IN_USE` are in use at every
    step: a window is filled in when its last batch has a place."""
    needs = deque(schedule(order, epoch, first_step, *part))
    for step in range(first_step, order.steps):
        while needs and needs[0].last_step <= step - BATCHES_IN_USE + batches:
            needs.popleft()
        assert not needs or needs[0].first_step > step, f"step {step} waits for itself"


@given(positions())
def test_the_least_ring_is_always_enough(position: tuple[Order, int, int, tuple[int, int]]) -> None:
    """The least memory that is granted must never make a run wait for itself."""
    fill_on_paper(*position, least_batches(position[0]))


def test_less_is_not_enough() -> None:
    """What the test above is worth: with a batch less the same loader stands still. Of windows of
    5 over shares of 3, one that begins at the end of a share is spread over three."""
    order = Order(((5,) * 6,) * 2, global_batch=6, lanes=2, window_blocks=1, seed=1)
    assert [(need.first_step, need.last_step) for need in schedule(order, 0, 0, 0, 6)[::2]] == [
        (0, 1), (1, 3), (3, 4), (5, 6), (6, 8), (8, 9)
    ]  # fmt: skip
    assert (steps_per_window(order), least_batches(order)) == (3, 4)
    fill_on_paper(order, 0, 0, (0, 6), 4)
    with pytest.raises(AssertionError, match="step 1 waits for itself"):
        fill_on_paper(order, 0, 0, (0, 6), 3)
