"""When a rank needs which window: pure, from the order and the rank's part of every batch."""

from __future__ import annotations

from dataclasses import dataclass

from quickdraw_dist.stream.order import Order, Window


@dataclass(frozen=True)
class Need:
    """A window of a lane, and the moment at which a rank first delivers from it.

    A window begins a rank's part of its lane's share of a batch, or it follows another window
    inside that share (`crossing`). A batch first takes what begins, then, lane after lane, what
    crosses: sorted by (step, crossing, lane), every window comes when its turn to be read is, and
    a loader that holds one window of every lane can always go on.
    """

    step: int
    crossing: bool
    lane: int
    window: Window


def schedule(order: Order, epoch: int, first_step: int, start: int, stop: int) -> list[Need]:
    """Windows that a rank delivers from, in the order in which it needs them.

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
            at = _first_delivery(order, window, first_step, low, high)
            step = at // order.lane_batch
            if at < window.start + window.count and step < order.steps:
                crossing = at % order.lane_batch > low
                needs.append(Need(step, crossing, lane, window))
    return sorted(needs, key=lambda n: (n.step, n.crossing, n.lane, n.window.start))


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
