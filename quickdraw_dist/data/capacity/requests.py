"""Requests and bytes that sharding and training ask of a store, as pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, fields

from quickdraw_dist.base import storage
from quickdraw_dist.data.capacity.outline import Outline
from quickdraw_dist.data.drawings.drawing import PIXELS
from quickdraw_dist.data.drawings.strokes.records import READ_BYTES
from quickdraw_dist.data.order.content_bytes import content_bytes
from quickdraw_dist.data.order.order import Order, Piece, evaluation_pieces
from quickdraw_dist.data.shards.plan import RECORD_INDEX_BYTES, SPLITS

LIST_PAGE = 1000
"""Objects per page of a listing; each page is a request."""


SOURCE_BYTES_PER_DRAWING = {"bitmaps": PIXELS, "strokes": 117}
"""Of official files: strokes are 5.89 GB in binary files. Simplified .ndjson takes 476 bytes per
drawing, raw .ndjson 3,863."""


@dataclass(frozen=True, order=True)
class Requests:
    """Requests to a store, and the bytes they move."""

    lists: int = 0  # pages of listings
    reads: int = 0
    writes: int = 0
    bytes: int = 0

    def __add__(self, other: Requests) -> Requests:
        """Return the sum of both."""
        sums = (getattr(self, f.name) + getattr(other, f.name) for f in fields(self))
        return Requests(*sums)

    def __mul__(self, count: int) -> Requests:
        """Return these requests, made `count` times."""
        return Requests(*(count * getattr(self, f.name) for f in fields(self)))


# -- sharding --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sharding:
    """What it takes to turn a source into a dataset."""

    groups: int
    workers: int
    busy_workers: int  # that have a group to build
    worker_bytes: int  # of memory
    hours: float
    source: Requests  # none for a source that is not in a bucket
    dest: Requests  # upper bound, for a DEST in a bucket: includes looking for finished groups


def sharding(dataset: Outline, workers: int, drawings_per_second: float) -> Sharding:
    """Return what sharding takes: of bitmap files to bitmaps, or of stroke files to strokes.

    Args:
        dataset: to be made.
        workers: processes that build groups, each a command of its own (`--worker I --of N`).
        drawings_per_second: of one worker.
    """
    plan, labels = dataset.plan, range(len(dataset.plan.classes))
    ranges = [
        [stop - start for start, stop in (plan.rows(group, label) for label in labels)]
        for group in range(plan.groups)
    ]
    of_workers = [sum(map(sum, ranges[worker::workers])) for worker in range(workers)]
    reads = sum(1 for group in ranges for count in group if count)
    # Every worker lists the classes; the merge reads two checksums of each file.
    reads += 2 * len(labels)
    each = SOURCE_BYTES_PER_DRAWING[plan.settings.content]
    source = Requests(workers * _pages(len(labels)), reads, bytes=plan.drawings * each)
    # Every worker looks for finished groups before its work and after it: it lists shards and part
    # files, and reads the part files.
    shards, looks = [len(dataset.blocks[split]) for split in SPLITS], 2 * workers
    dest = Requests(
        lists=looks * sum(_pages(objects) for objects in (*shards, plan.groups)),
        reads=looks * plan.groups,
        writes=sum(shards) + plan.groups + 1,
        bytes=sum(sum(dataset.shard_bytes[split]) for split in SPLITS),
    )
    if plan.settings.content == "strokes":
        # Every worker looks at each file for changes; one pass finds the records of all, with a
        # checksum of each. The indices are kept: every worker looks for each, at most twice.
        passes = sum(-(-count * each // READ_BYTES) for count in plan.counts)
        stats = (workers + 1) * len(labels)
        source += Requests(reads=stats + passes, bytes=plan.drawings * each)
        moved = workers * plan.drawings * RECORD_INDEX_BYTES
        dest += Requests(reads=looks * len(labels), writes=len(labels), bytes=moved)
    else:
        # Every worker reads each header twice, as a range has no checksum.
        source += Requests(reads=2 * workers * len(labels))
    return Sharding(
        groups=plan.groups,
        workers=workers,
        busy_workers=min(workers, plan.groups),
        worker_bytes=plan.worker_bytes,
        hours=max(of_workers) / drawings_per_second / 3600,
        source=source if storage.is_remote(dataset.source) else Requests(),
        dest=dest,
    )


def _pages(objects: int) -> int:
    return max(1, -(-objects // LIST_PAGE))


# -- training --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NodeReads:
    """What the ranks of one node read per epoch, by split.

    Without a cache, a lane may read one window less: one of drawings that the epoch drops.
    """

    by_block: dict[str, Requests]  # without a cache: every rank for itself, one request per block
    by_shard: dict[str, Requests]  # into an empty cache: every shard once for all ranks
    decoded_bytes: int  # of the training split

    @property
    def cache_bytes(self) -> int:
        """Cache size from which every epoch after the first is served without the store."""
        return sum(requests.bytes for requests in self.by_shard.values())


def node_reads(dataset: Outline, order: Order, ranks: range, world_size: int) -> NodeReads:
    """Return what the node with these ranks reads.

    A rank reads its lanes from end to end, and decodes all of a block in which a lane begins or
    ends.
    """
    lanes = [lane for rank in ranks for lane in order.share(rank, world_size).lanes]
    val = dataset.blocks["val"]
    pieces: dict[str, list[Piece]] = {
        "train": [piece for lane in lanes for piece in order.lane_pieces(lane)],
        "val": [piece for rank in ranks for piece in evaluation_pieces(val, rank, world_size)],
    }
    by_block, by_shard, decoded = {}, {}, {}
    each = content_bytes(dataset.per_drawing).decoded
    for split, of_split in pieces.items():
        blocks = [(p.shard, dataset.blocks[split][p.shard][p.block]) for p in of_split]
        sizes = [dataset.bytes_of(split, shard, count) for shard, count in blocks]
        shards = {piece.shard for piece in of_split}
        whole = [dataset.shard_bytes[split][shard] for shard in shards]
        by_block[split] = Requests(reads=len(blocks), bytes=sum(sizes))
        by_shard[split] = Requests(reads=len(shards), bytes=sum(whole))
        decoded[split] = sum(count for _, count in blocks) * each
    return NodeReads(by_block, by_shard, decoded["train"])


def epoch_requests(
    reads: NodeReads, cache_bytes: int, *, validations: int, resident: bool
) -> tuple[Requests, Requests]:
    """Return a node's requests in a first epoch with an empty cache, and in each later epoch.

    A cache too small for all that the node reads saves about nothing from epoch to epoch: it evicts
    what is read next.

    Args:
        reads: of the node, per epoch.
        cache_bytes: size of the cache; 0 for none.
        validations: per epoch.
        resident: the ranks keep the training split in memory.
    """
    each = reads.by_shard if cache_bytes else reads.by_block
    if cache_bytes and reads.cache_bytes <= cache_bytes:
        return each["train"] + each["val"], Requests()
    validation = each["val"] * validations
    return each["train"] + validation, validation if resident else each["train"] + validation
