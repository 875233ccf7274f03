"""Which windows a rank reads in an epoch, and the steps that need them."""

from __future__ import annotations

from dataclasses import dataclass

from quickdraw_dist.data.order.order import Order, Window
from quickdraw_dist.data.order.share import Share


@dataclass(frozen=True)
class ScheduledWindow:
    """A window of a lane, and the steps in which one rank delivers drawings from it."""

    first_step: int
    last_step: int  # upper bound: one too high where another rank delivers the window's end
    lane: int
    window: Window


def schedule(order: Order, share: Share, epoch: int, first_step: int) -> list[ScheduledWindow]:
    """Return the windows that a rank delivers drawings from, from `first_step` of an epoch on, by
    the first step that needs them."""
    scheduled = []
    for lane in share.lanes:
        low, high = share.cut(lane)
        for window in order.windows(epoch, lane):
            end = window.start + window.count
            at = _first_delivery(order, window, first_step, low, high)
            step, last_step = at // order.lane_batch, (end - 1) // order.lane_batch
            if at < end and step < order.steps:
                last_step = min(last_step, order.steps - 1)
                scheduled.append(ScheduledWindow(step, last_step, lane, window))
    return sorted(scheduled, key=lambda it: (it.first_step, it.lane, it.window.start))


def _first_delivery(order: Order, window: Window, first_step: int, low: int, high: int) -> int:
    """Return the lane position of the window's first drawing that falls into [low, high) of the
    lane's slice of a batch, in `first_step` or later; beyond the window's end if none does."""
    at = max(window.start, first_step * order.lane_batch)
    step, offset = divmod(at, order.lane_batch)
    if offset < low:
        return step * order.lane_batch + low
    if offset >= high:
        return (step + 1) * order.lane_batch + low
    return at


def steps_per_window(order: Order) -> int:
    """Return the most steps that deliver drawings from one window."""
    return min(order.steps, -(-(order.longest_window - 1) // order.lane_batch) + 1)
