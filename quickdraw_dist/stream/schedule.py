"""What a rank reads of an epoch, when, and where in its batches it goes: pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.stream.order import Order, Window


@dataclass(frozen=True)
class Need:
    """A window of a lane, and the steps in which a rank delivers from it."""

    first_step: int
    last_step: int  # at most: where another rank delivers the window's end it is one before
    lane: int
    window: Window


def schedule(order: Order, epoch: int, first_step: int, start: int, stop: int) -> list[Need]:
    """Windows that a rank delivers from, by the first step that needs them.

    Args:
        order: of the split.
        epoch: which pass.
        first_step: where in the epoch the rank begins.
        start: of the rank's part [start, stop) of every global batch.
        stop: of the same.
    """
    needs = []
    for lane, low, high in order.segments(0, start, stop):
        for window in order.windows(epoch, lane):
            end = window.start + window.count
            at = _first_delivery(order, window, first_step, low, high)
            step, last_step = at // order.lane_batch, (end - 1) // order.lane_batch
            if at < end and step < order.steps:
                needs.append(Need(step, min(last_step, order.steps - 1), lane, window))
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


def longest_need(order: Order) -> int:
    """Most steps that deliver from one window."""
    return min(order.steps, -(-(order.longest_window - 1) // order.lane_batch) + 1)


def destinations(
    order: Order, need: Need, first_step: int, start: int, stop: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the drawings of a window go, its pieces laid end to end: the step of each, (count,),
    and its place in the rank's part [start, stop) of that batch, -1 for those that are delivered
    by another rank, before `first_step`, or not at all in this epoch."""
    window = need.window
    positions = np.empty(window.count, np.int64)
    positions[window.shuffled()] = np.arange(window.start, window.start + window.count)
    steps = positions // order.lane_batch
    places = positions - steps * order.lane_batch + (need.lane * order.lane_batch - start)
    mine = (places >= 0) & (places < stop - start) & (steps >= first_step) & (steps < order.steps)
    return steps, np.where(mine, places, -1)
