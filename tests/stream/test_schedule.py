"""Windows come when a rank's turn to deliver from them is, so that the least memory is enough."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.stream.order import Order, Window, rank_part
from quickdraw_dist.stream.schedule import Need, schedule
from tests.stream.orders import orders

Key = tuple[int, int]
"""Lane, and where in it a window starts."""


@st.composite
def positions(draw: st.DrawFn) -> tuple[Order, int, int, tuple[int, int]]:
    """An order, an epoch, a step to begin with, and the part of any rank of any world."""
    order = draw(orders())
    world_size = draw(st.integers(1, min(8, order.global_batch)))
    part = rank_part(order.global_batch, draw(st.integers(0, world_size - 1)), world_size)
    return order, draw(st.integers(0, 3)), draw(st.integers(0, order.steps)), part


def keys(needs: list[Need]) -> list[Key]:
    return [(need.lane, need.window.start) for need in needs]


@given(positions())
def test_what_is_delivered_from_is_scheduled_and_nothing_else(
    position: tuple[Order, int, int, tuple[int, int]],
) -> None:
    """A window too many is read for nothing; one that is missing is a run that stands still."""
    order, epoch, first_step, part = position
    needed: dict[Key, int] = {}
    for step in range(first_step, order.steps):
        for lane, first, last in order.segments(step, *part):
            for window in order.windows(epoch, lane):
                if max(first, window.start) < min(last, window.start + window.count):
                    needed.setdefault((lane, window.start), step)
    needs = schedule(order, epoch, first_step, *part)
    assert len(needs) == len(needed)
    assert {key: need.step for key, need in zip(keys(needs), needs, strict=True)} == needed
    for need in needs:
        assert need.window in order.windows(epoch, need.lane)
    lanes = {need.lane for need in needs}
    for lane in lanes:
        starts = [need.window.start for need in needs if need.lane == lane]
        assert starts == sorted(starts)


@dataclass
class Room:
    """A loader's memory on paper: windows take buffers in the order of the schedule."""

    free: int
    coming: deque[Need]
    open: dict[int, deque[Window]] = field(default_factory=dict)

    def fill(self) -> None:
        while self.coming and len(self.coming[0].window.pieces) <= self.free:
            need = self.coming.popleft()
            self.free -= len(need.window.pieces)
            self.open.setdefault(need.lane, deque()).append(need.window)

    def reach(self, lane: int, position: int) -> Window:
        """Lets go of the lane's windows before a position; the one that holds it must be there."""
        windows = self.open.get(lane, deque())
        while windows and windows[0].start + windows[0].count <= position:
            self.free += len(windows.popleft().pieces)
        self.fill()
        windows = self.open.get(lane, deque())
        assert windows, f"lane {lane} waits at {position} for buffers that nobody will give back"
        assert windows[0].start <= position
        return windows[0]


def deliver_on_paper(
    order: Order, epoch: int, first_step: int, part: tuple[int, int], buffers: int
) -> Room:
    """An epoch with that many buffers: each batch takes from all lanes what their windows hold,
    and then lane after lane what lies beyond."""
    room = Room(buffers, deque(schedule(order, epoch, first_step, *part)))
    room.fill()
    for step in range(first_step, order.steps):
        beyond = []
        for lane, first, last in order.segments(step, *part):
            window = room.reach(lane, first)
            beyond.append((lane, window.start + window.count, last))
        for lane, at, last in beyond:
            while at < last:
                window = room.reach(lane, at)
                at = window.start + window.count
    return room


@given(positions())
def test_one_window_a_lane_is_always_enough(
    position: tuple[Order, int, int, tuple[int, int]],
) -> None:
    """The least memory that is granted must never make a run wait for itself."""
    order, epoch, first_step, part = position
    lanes = len(order.segments(0, *part))
    room = deliver_on_paper(order, epoch, first_step, part, lanes * order.window_blocks)
    assert not room.coming


def test_less_than_one_window_a_lane_is_not_enough() -> None:
    """What the test above is worth: with a buffer less the same loader stands still."""
    order = Order(((4,) * 6,) * 4, global_batch=8, lanes=4, window_blocks=2, seed=1)
    assert not deliver_on_paper(order, 0, 0, (0, 8), 8).coming
    with pytest.raises(AssertionError, match="waits"):
        deliver_on_paper(order, 0, 0, (0, 8), 7)


def test_windows_of_a_long_share_follow_each_other() -> None:
    """A share of 10 drawings over windows of 4: what begins it comes first, lane after lane; then
    each lane's others, as the batch takes them."""
    order = Order(((4,) * 10,), global_batch=20, lanes=2, window_blocks=1, seed=1)
    needs = schedule(order, 0, 0, 0, 20)
    assert [(need.step, need.crossing, need.lane) for need in needs[:6]] == [
        (0, False, 0), (0, False, 1), (0, True, 0), (0, True, 0), (0, True, 1), (0, True, 1)
    ]  # fmt: skip
