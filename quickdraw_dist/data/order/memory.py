"""How much a loader may hold, and what it makes of it: pure arithmetic."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.process import processors
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.schedule import longest_need
from quickdraw_dist.data.shards.blocks import BYTES_PER_DRAWING
from quickdraw_dist.data.stream.ring import ring_bytes

BATCHES = 4
"""Batches made ahead where nothing else decides, the one in use included."""

HELD = 2
"""Batches in use at once: one in the step, and one on its way to the device."""

RESIDENT_BYTES = BYTES_PER_DRAWING + 2 * 8
"""Of a drawing in resident mode: pixels, label, row, and its place in this epoch and the next."""

RESIDENT_SHARE = 0.8
"""Of the memory there is, what resident drawings may take: the model and the rest need some."""

MOST_THREADS = 8
"""Decoding threads of a rank where the setting does not say."""

_MOST_FETCHERS = 8

_SCRATCH_BLOCKS = 2
"""Blocks' worth of bytes that a decoding thread works on: as read, and decoded."""

_SCRATCH_PLACES = 40
"""Bytes a drawing while a window's drawings are given their places: five integers at once."""

_JOINING = 1
"""Shards under way that are there twice: the client joins the pieces that came, one at a time."""


@dataclass(frozen=True)
class LoaderMemory:
    """Sizes of one rank's loader."""

    batches: int  # of coming steps, those in use included
    threads: int  # that read and decode
    fetchers: int  # shards fetched from a store at once; 0: a local dataset
    bytes: int  # of all of it, at most


def processor_share(local_world_size: int) -> int:
    """Threads that decode where the setting does not say: the rank's share of the processors."""
    return max(1, min(MOST_THREADS, processors() // local_world_size))


def least_batches(order: Order) -> int:
    """With fewer a loader could not go on: all that one window is spread over, the first of which
    is in use, and the others in use."""
    return longest_need(order) + HELD - 1


def plan_memory(
    order: Order, start: int, stop: int, *, memory_bytes: int, threads: int, shard_bytes: int,
    pin: bool,
) -> LoaderMemory:  # fmt: skip
    """Depth and threads of a loader that stays within `memory_bytes`.

    It holds at least the batches that one window is spread over. With room for twice as many, the
    next windows are begun as these are, also where all lanes begin theirs at the same step; more
    would bring nothing.

    Args:
        order: of the split.
        start: of the rank's part [start, stop) of every global batch.
        stop: of the same.
        memory_bytes: the setting.
        threads: wanted.
        shard_bytes: largest shard of a remote dataset, held while it is fetched; 0 for a local one.
        pin: batches lie in pinned memory, for CUDA.

    Raises:
        RefusedError: not even the least fits.
    """
    window, least = longest_need(order), least_batches(order)
    scratch = _SCRATCH_BLOCKS * order.longest_block * BYTES_PER_DRAWING
    scratch += _SCRATCH_PLACES * order.longest_window

    def taken(batches: int, threads: int, fetchers: int) -> int:
        shards = fetchers + _JOINING if fetchers else 0
        return ring_bytes(batches, stop - start, pin) + threads * scratch + shards * shard_bytes

    fetchers = 1 if shard_bytes else 0
    if (needed := taken(least, 1, fetchers)) > memory_bytes:
        shard = f" and a shard of {shard_bytes:,} bytes on its way" if shard_bytes else ""
        raise RefusedError(
            f"--stream.memory_bytes {memory_bytes}: a window of {order.window_blocks} blocks of "
            f"{order.longest_block:,} drawings is spread over {window:,} batches of "
            f"{stop - start:,}, which with the one before them{shard} take {needed:,} bytes at "
            "least; that much, a smaller --stream.window_blocks, or more ranks (fewer drawings "
            "each) are right"
        )
    while threads > 1 and taken(least, threads, fetchers) > memory_bytes:
        threads -= 1
    # Half of what is left goes to shards in flight, the rest to batches ahead.
    if shard_bytes:
        left = memory_bytes - taken(least, threads, fetchers)
        fetchers = min(_MOST_FETCHERS, fetchers + left // 2 // shard_bytes)
    more = range(least + 1, least + window + 1)
    batches = least + bisect_right(more, memory_bytes, key=lambda n: taken(n, threads, fetchers))
    return LoaderMemory(batches, threads, fetchers, taken(batches, threads, fetchers))


def resident_drawings(order: Order, start: int, stop: int) -> int:
    """Drawings of all lanes that a rank reads from, whole."""
    ranges = [order.lane_range(lane) for lane, _, _ in order.segments(0, start, stop)]
    return sum(last - first for first, last in ranges)
