"""What a rank reads of an epoch, when, and where in its batches it goes: pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.data.order.order import Order, Window
from quickdraw_dist.data.order.share import Share


@dataclass(frozen=True)
class ScheduledWindow:
    """A window of a lane, and the steps in which a rank delivers from it."""

    first_step: int
    last_step: int  # at most: where another rank delivers the window's end it is one before
    lane: int
    window: Window


def schedule(order: Order, share: Share, epoch: int, first_step: int) -> list[ScheduledWindow]:
    """Windows that a rank delivers from, by the first step that needs them.

    Args:
        order: of the split.
        share: the rank's.
        epoch: which pass.
        first_step: where in the epoch the rank begins.
    """
    needs = []
    for lane in share.lanes:
        low, high = share.cut(lane)
        for window in order.windows(epoch, lane):
            end = window.start + window.count
            at = _first_delivery(order, window, first_step, low, high)
            step, last_step = at // order.lane_batch, (end - 1) // order.lane_batch
            if at < end and step < order.steps:
                needs.append(ScheduledWindow(step, min(last_step, order.steps - 1), lane, window))
    return sorted(needs, key=lambda need: (need.first_step, need.lane, need.window.start))


def _first_delivery(order: Order, window: Window, first_step: int, low: int, high: int) -> int:
    """First position in the lane, from the window's start on, that falls into the rank's part
    [low, high) of the lane's share of a batch."""
    at = max(window.start, first_step * order.lane_batch)
    step, offset = divmod(at, order.lane_batch)
    if offset < low:
        return step * order.lane_batch + low
    if offset >= high:
        return (step + 1) * order.lane_batch + low
    return at


def steps_per_window(order: Order) -> int:
    """Most steps that deliver from one window."""
    return min(order.steps, -(-(order.longest_window - 1) // order.lane_batch) + 1)


class Places:
    """Where the drawings of a window go in a ring of batches: place p of step t is number
    (t modulo the ring's steps) * (drawings of the rank in a batch) + p."""

    def __init__(self, order: Order, share: Share, ring_steps: int) -> None:
        """The ring holds at least the steps that one window is spread over."""
        self._order, self._share = order, share
        self.nowhere = ring_steps * share.drawings  # the first number that is no place
        positions = np.arange(ring_steps * order.lane_batch)
        steps, places = np.divmod(positions, order.lane_batch)
        # Of a lane's positions from any on, until they come round: twice the round.
        self._round, self._line = len(positions), np.tile(steps * share.drawings + places, 2)

    def of(self, need: ScheduledWindow, first_step: int) -> NDArray[np.int64]:
        """The numbers of a window's drawings, its pieces laid end to end, (count,); `nowhere` for
        those that are delivered by another rank, before `first_step`, or not in this epoch."""
        window, each = need.window, self._order.lane_batch
        begin = window.start % self._round
        line = self._line[begin : begin + window.count] + (need.lane * each - self._share.start)
        line[: max(0, first_step * each - window.start)] = self.nowhere
        line[max(0, self._order.steps * each - window.start) :] = self.nowhere
        low, high = self._share.cut(need.lane)
        if (low, high) != (0, each):  # the lane's share of a batch is cut
            offsets = np.arange(window.start, window.start + window.count) % each
            line[(offsets < low) | (offsets >= high)] = self.nowhere
        places = np.empty_like(line)
        places[window.shuffled()] = line
        return places
