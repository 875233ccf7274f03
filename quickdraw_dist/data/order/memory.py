"""What a loader holds in memory, as a function of the order, a rank's share and the settings.

The loader (`data/feed.py`) and the planner (`data/capacity/`) call the same functions, so a plan
states the bytes that a run takes and refuses what the run would refuse.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from quickdraw_dist.base.errors import RefusedError, flag
from quickdraw_dist.base.process.cpus import processors
from quickdraw_dist.data.order.content_bytes import BATCHES_IN_USE, ContentBytes
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.schedule import steps_per_window
from quickdraw_dist.data.order.share import Share

PREFETCHED_BATCHES = 4
"""Batches that external data is read ahead, the one in use included."""

RESIDENT_FRACTION = 0.8
"""Fraction of the memory that resident drawings may take; the model and the step need the rest."""

MOST_THREADS = 8
"""Most decoding threads per rank where `stream.threads` is not set."""

_MOST_FETCHERS = 8

_JOINED_SHARDS = 1
"""Shards in flight that are held twice: the client joins the chunks of one response at a time."""


@dataclass(frozen=True)
class LoaderMemory:
    """Sizes of one rank's loader."""

    batches: int  # slots of the ring
    threads: int  # that read and decode
    fetchers: int  # shards fetched from a store at once; 0 for a local dataset
    bytes: int  # upper bound of all of it


def default_threads(local_world_size: int) -> int:
    """Return the decoding threads of a rank: its equal part of the node's processors, 8 at most."""
    return max(1, min(MOST_THREADS, processors() // local_world_size))


# -- streamed --------------------------------------------------------------------------------------


def least_batches(order: Order) -> int:
    """Return the fewest slots a ring works with: the batches that one window is spread over, the
    first of which may be in use, and the other batches in use."""
    return steps_per_window(order) + BATCHES_IN_USE - 1


def plan_memory(
    order: Order, share: Share, content: ContentBytes, *, memory_bytes: int, threads: int,
    shard_bytes: int, pin: bool,
) -> LoaderMemory:  # fmt: skip
    """Return the ring's slots, threads and fetchers of a loader that fits `memory_bytes`.

    The least is one window's batches, one thread and one fetcher. Then come threads, then fetchers
    (half of what remains), then slots, up to twice a window's batches: with so many the next
    windows are decoded while these are delivered, also where all lanes begin theirs at once.

    Args:
        memory_bytes: `stream.memory_bytes`.
        threads: wanted; fewer where they do not fit.
        shard_bytes: largest shard of a remote dataset, held while it is fetched; 0 if local.
        pin: batches lie in pinned memory, for CUDA.

    Raises:
        RefusedError: not even the least fits; fact `needed_bytes` is the least.
    """
    window, least = steps_per_window(order), least_batches(order)
    thread_bytes = content.thread(order)

    def taken(batches: int, threads: int, fetchers: int) -> int:
        shards = fetchers + _JOINED_SHARDS if fetchers else 0
        ring = content.ring(order, share, batches, pin)
        return ring + threads * thread_bytes + shards * shard_bytes

    fetchers = 1 if shard_bytes else 0
    if (needed := taken(least, 1, fetchers)) > memory_bytes:
        shard = f" and a shard of {shard_bytes:,} bytes in flight" if shard_bytes else ""
        raise RefusedError(
            flag("stream.memory_bytes"),
            memory_bytes,
            f"a window of {order.window_blocks} blocks of {order.longest_block:,} drawings is "
            f"spread over {window:,} batches of {share.drawings:,}, which with the batch before "
            f"them{shard} take {needed:,} bytes",
            f"Use {flag('stream.memory_bytes', needed)} or more, a smaller "
            f"{flag('stream.window_blocks')}, or more ranks (fewer drawings each)",
            needed_bytes=needed,
        )
    while threads > 1 and taken(least, threads, fetchers) > memory_bytes:
        threads -= 1
    if shard_bytes:
        left = memory_bytes - taken(least, threads, fetchers)
        fetchers = min(_MOST_FETCHERS, fetchers + left // 2 // shard_bytes)
    more = range(least + 1, least + window + 1)
    batches = least + bisect_right(more, memory_bytes, key=lambda n: taken(n, threads, fetchers))
    return LoaderMemory(batches, threads, fetchers, taken(batches, threads, fetchers))


# -- resident --------------------------------------------------------------------------------------


def resident_drawings(order: Order, share: Share) -> int:
    """Return the drawings that a resident rank holds: all of every lane that it reads from."""
    ranges = map(order.lane_range, share.lanes)
    return sum(stop - start for start, stop in ranges)


def resident_limit(memory_bytes: int) -> int:
    """Return the bytes that resident drawings may take of a rank's memory."""
    return int(memory_bytes * RESIDENT_FRACTION)


def check_resident(
    order: Order, share: Share, content: ContentBytes, *, limit_bytes: int, memory: str,
    batches_bytes: int = 0,
) -> None:  # fmt: skip
    """Check that a rank's resident drawings, and `batches_bytes` of batches made in the same
    memory, stay within `limit_bytes`; `memory` names it in the message.

    Raises:
        RefusedError: they do not fit; facts `needed_bytes`, `limit_bytes` and `ranks`, about how
            many would be enough.
    """
    count = resident_drawings(order, share)
    needed = content.resident(count) + batches_bytes
    if needed <= limit_bytes:
        return
    ranks = -(-content.resident(order.drawings) // max(limit_bytes - batches_bytes, 1))
    more = f"about {ranks:,} ranks or more, or " if ranks <= order.global_batch else ""
    beside = f" with {batches_bytes:,} for batches (--stream.memory_bytes)" if batches_bytes else ""
    raise RefusedError(
        flag("stream.resident"),
        True,
        f"the lanes of a rank hold {count:,} drawings and take {needed:,} bytes{beside}, but only "
        f"{limit_bytes:,} may be used ({RESIDENT_FRACTION:.0%} of {memory})",
        f"Use {more}{flag('stream.resident', False)}",
        needed_bytes=needed,
        limit_bytes=limit_bytes,
        ranks=ranks,
    )
