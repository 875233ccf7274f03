"""How much a loader may hold, and what it makes of it: pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from quickdraw_dist.errors import RefusedError
from quickdraw_dist.processors import processors
from quickdraw_dist.stream import arena, batch
from quickdraw_dist.stream.order import Order

BATCHES = 4
"""Batches made ahead, the one in use included: more only hides what the windows already hide."""

RESIDENT_BYTES = arena.BYTES_A_DRAWING + 2 * 8
"""Of a drawing in resident mode: pixels, label, row, and its place in this epoch and the next."""

RESIDENT_SHARE = 0.8
"""Of the memory there is, what resident drawings may take: the model and the rest need some."""

MOST_THREADS = 8
"""Decoding threads of a rank where the setting does not say."""

_MOST_FETCHERS = 8

_SCRATCH_BLOCKS = 2
"""Blocks' worth of bytes that a decoding thread works on: compressed, and decoded once more."""

_JOINING = 1
"""Shards under way that are there twice: the client joins the pieces that came, one at a time."""


@dataclass(frozen=True)
class LoaderMemory:
    """Sizes of one rank's loader."""

    buffers: int  # decoded blocks
    threads: int  # that read and decode
    fetchers: int  # shards fetched from a store at once; 0: a local dataset
    bytes: int  # of all of it, at most


def processor_share(local_world_size: int) -> int:
    """Threads that decode where the setting does not say: the rank's share of the processors."""
    return max(1, min(MOST_THREADS, processors() // local_world_size))


def plan_memory(
    order: Order, start: int, stop: int, *, memory_bytes: int, threads: int, shard_bytes: int
) -> LoaderMemory:
    """Depth and threads of a loader that stays within `memory_bytes`.

    It holds at least one window of every lane; with room for two it never waits where all lanes
    begin a new one at the same step. More than that would bring nothing.

    Args:
        order: of the split.
        start: of the rank's part [start, stop) of every global batch.
        stop: of the same.
        memory_bytes: the setting.
        threads: wanted.
        shard_bytes: largest shard of a remote dataset, held while it is fetched; 0 for a local one.

    Raises:
        RefusedError: not even the least fits.
    """
    lanes = len(order.segments(0, start, stop))
    block_bytes = order.longest_block * arena.BYTES_A_DRAWING
    least = lanes * order.window_blocks
    batches = BATCHES * (stop - start) * batch.BYTES_A_DRAWING

    def taken(buffers: int, threads: int, fetchers: int) -> int:
        blocks = buffers + _SCRATCH_BLOCKS * threads
        shards = fetchers + _JOINING if fetchers else 0
        return batches + blocks * block_bytes + shards * shard_bytes

    fetchers = 1 if shard_bytes else 0
    if (needed := taken(least, 1, fetchers)) > memory_bytes:
        shard = f" and a shard of {shard_bytes:,} bytes on its way" if shard_bytes else ""
        raise RefusedError(
            f"--stream.memory_bytes {memory_bytes}: this rank reads {lanes} lanes and holds "
            f"{order.window_blocks} blocks of {order.longest_block:,} drawings of each, with "
            f"{BATCHES} batches{shard} {needed:,} bytes at least; that much, a smaller "
            "--stream.window_blocks, or more ranks (fewer lanes each) are right"
        )
    while threads > 1 and taken(least, threads, fetchers) > memory_bytes:
        threads -= 1
    # Half of what is left goes to shards in flight, the rest to windows ahead.
    if shard_bytes:
        left = memory_bytes - taken(least, threads, fetchers)
        fetchers = min(_MOST_FETCHERS, fetchers + left // 2 // shard_bytes)
    left = memory_bytes - taken(least, threads, fetchers)
    buffers = min(2 * least, least + left // block_bytes)
    return LoaderMemory(buffers, threads, fetchers, taken(buffers, threads, fetchers))


def resident_drawings(order: Order, start: int, stop: int) -> int:
    """Drawings of all lanes that a rank reads from, whole."""
    ranges = [order.lane_range(lane) for lane, _, _ in order.segments(0, start, stop)]
    return sum(last - first for first, last in ranges)
