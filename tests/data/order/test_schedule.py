"""A rank reads the windows that it delivers from, and the least ring is enough for them."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given

from quickdraw_dist.data.order.memory import BATCHES_IN_USE, least_batches
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.schedule import schedule, steps_per_window
from quickdraw_dist.data.order.share import Share
from tests.support.data.orders import RankEpoch, rank_epochs

Key = tuple[int, int]
"""Lane, and position in it of a window's first drawing."""


@given(rank_epochs())
def test_only_windows_to_deliver_from_are_scheduled(case: RankEpoch) -> None:
    """A window too many is read for nothing; a missing one leaves holes in a batch."""
    order, share, epoch, first_step = case
    expected: dict[Key, list[int]] = {}
    for step in range(first_step, order.steps):
        for lane in share.lanes:
            first, last = (step * order.lane_batch + offset for offset in share.cut(lane))
            for window in order.windows(epoch, lane):
                if max(first, window.start) < min(last, window.start + window.count):
                    expected.setdefault((lane, window.start), []).append(step)
    scheduled = schedule(order, share, epoch, first_step)
    assert len(scheduled) == len(expected)
    for it in scheduled:
        assert it.window in order.windows(epoch, it.lane)
        steps = expected[it.lane, it.window.start]
        assert it.first_step == min(steps)
        assert max(steps) <= it.last_step <= min(max(steps) + 1, order.steps - 1)
        assert it.last_step - it.first_step < steps_per_window(order)
    firsts = [it.first_step for it in scheduled]
    assert firsts == sorted(firsts)


def simulate_ring(order: Order, share: Share, epoch: int, first_step: int, batches: int) -> None:
    """Simulate an epoch with a ring of `batches` slots, of which `BATCHES_IN_USE` are in use at
    every step: a window is decoded when its last batch has a slot."""
    scheduled = deque(schedule(order, share, epoch, first_step))
    for step in range(first_step, order.steps):
        while scheduled and scheduled[0].last_step <= step - BATCHES_IN_USE + batches:
            scheduled.popleft()
        assert not scheduled or scheduled[0].first_step > step, f"step {step} deadlocks"


@given(rank_epochs())
def test_the_least_ring_is_always_enough(case: RankEpoch) -> None:
    """The least memory that is granted must never make a run deadlock."""
    simulate_ring(*case, least_batches(case[0]))


def test_less_is_not_enough() -> None:
    """The test above can fail: with a batch less the same loader deadlocks. Of windows of 5
    drawings, 3 per step, one that begins with the last drawing of a step is spread over three."""
    order = Order(((5,) * 6,) * 2, global_batch=6, lanes=2, window_blocks=1, seed=1)
    share = order.share(0, 1)
    scheduled = schedule(order, share, 0, 0)
    assert [(it.first_step, it.last_step) for it in scheduled[::2]] == [
        (0, 1), (1, 3), (3, 4), (5, 6), (6, 8), (8, 9)
    ]  # fmt: skip
    assert (steps_per_window(order), least_batches(order)) == (3, 4)
    simulate_ring(order, share, 0, 0, 4)
    with pytest.raises(AssertionError, match="step 1 deadlocks"):
        simulate_ring(order, share, 0, 0, 3)
