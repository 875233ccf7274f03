"""What a run will need, before it starts: arithmetic over a dataset's outline, the order and the
loader's memory. No drawing is read, and no store is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from quickdraw_dist.base.errors import RefusedError, flag
from quickdraw_dist.base.settings import Settings, Stream
from quickdraw_dist.data.capacity.outline import Outline
from quickdraw_dist.data.capacity.requests import (
    NodeReads,
    Requests,
    Sharding,
    epoch_requests,
    node_reads,
    sharding,
)
from quickdraw_dist.data.order.content_bytes import ContentBytes, content_bytes
from quickdraw_dist.data.order.lanes import resolve_lanes
from quickdraw_dist.data.order.memory import (
    MOST_THREADS,
    check_resident,
    plan_memory,
    resident_drawings,
    resident_limit,
)
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.shards.plan import SPLITS

SHARD_DRAWINGS_PER_SECOND = {"bitmaps": 200_000.0, "strokes": 150_000.0}
"""Of one sharding process, by content, with gzip to a local disk, for drawings that cost nothing to
read. 249,000 bitmaps were measured; reading as many from a bucket takes 160 MB/s. 156,177 strokes
were (benchmarks/results/growth_strokes.md, of a million)."""


@dataclass(frozen=True)
class Cluster:
    """Where a run is planned for. All numbers are 1 or more."""

    world_size: int = 1
    nodes: int = 1
    remote: bool = True  # the dataset is in a bucket
    gpu_bytes: int | None = None  # memory of one GPU; None: unknown
    drawings_per_second: float | None = None  # that one rank trains; None: unknown
    shard_workers: int = 1  # sharding processes, each a command of its own
    shard_drawings_per_second: float | None = None  # of one worker; None: as measured

    def __post_init__(self) -> None:
        if self.world_size % self.nodes:
            fitting = -(-self.world_size // self.nodes) * self.nodes
            raise RefusedError(
                "--world-size",
                self.world_size,
                f"not a multiple of --nodes {self.nodes}, but every node has equally many ranks",
                f"Use --world-size {fitting}",
                world_size=fitting,
            )

    @property
    def ranks_per_node(self) -> int:
        """Ranks on each node."""
        return self.world_size // self.nodes


@dataclass(frozen=True)
class Rank:
    """The most that any rank needs, number by number."""

    batch_drawings: int  # its share of a global batch
    lanes: int
    loader_bytes: int  # in the host
    resident_drawings: int
    resident_bytes: int  # with `stream.resident`


@dataclass(frozen=True)
class Node:
    """The most that any node needs, number by number."""

    loader_bytes: int  # in the host
    cache_bytes: int  # as set; 0 for none, or a local dataset
    cache_least_bytes: int  # one shard per lane of every rank; a smaller cache is not used
    cache_all_bytes: int  # from here on, only the first epoch reads from the store
    read_bytes: int  # per epoch, compressed, from the store, the cache or the disk
    decoded_bytes: int  # per epoch
    cold: Requests  # of the first epoch, with an empty cache
    warm: Requests  # of each later epoch


@dataclass(frozen=True)
class Epoch:
    """One pass over the training split, with its validations."""

    global_batch: int
    steps: int
    dropped_drawings: int
    lanes: int
    least_lane_drawings: int
    most_lane_drawings: int
    validations: int
    cold: Requests  # of all nodes
    warm: Requests


@dataclass(frozen=True)
class Rates:
    """What training at the given drawings/s needs; if resident, reads are the first epoch's."""

    epoch_seconds: float
    store_bytes_per_second: float  # of all nodes, with empty caches
    node_read_bytes_per_second: float  # compressed, from the store, the cache or the disk
    node_decoded_bytes_per_second: float


@dataclass(frozen=True)
class Capacity:
    """What sharding and a run need."""

    cluster: Cluster
    drawings: dict[str, int]  # by split
    shards: dict[str, int]  # by split
    shard_bytes: dict[str, int]  # by split
    sharding: Sharding
    epoch: Epoch
    node: Node
    rank: Rank
    resident: bool  # as set
    resident_fits: bool | None  # None: a GPU's memory is unknown
    resident_gpus: int | None  # the fewest that hold the training split
    rates: Rates | None  # None: no drawings/s given


def capacity(dataset: Outline, cluster: Cluster, settings: Settings) -> Capacity:
    """Return what sharding, and the nodes and ranks of a run, need with these settings.

    Raises:
        RefusedError: a run would be refused.
    """
    batch, world, stream = settings.train.global_batch, cluster.world_size, settings.stream
    order = Order(
        dataset.blocks["train"],
        batch,
        resolve_lanes(stream.lanes, batch, world),
        stream.window_blocks,
        settings.train.seed,
    )
    every = settings.evaluation.every_drawings
    validations = 1 + ((order.steps - 1) * batch // every if every else 0)
    shard_bytes = max(dataset.shard_bytes["train"])
    least = _shards_at_once(order, cluster, stream) * shard_bytes
    cache_bytes = _cache_bytes(cluster, stream, least)
    fetched = shard_bytes if cache_bytes else 0
    content = content_bytes(dataset.per_drawing)
    rate = cluster.shard_drawings_per_second
    rate = SHARD_DRAWINGS_PER_SECOND[dataset.plan.settings.content] if rate is None else rate
    ranks = [_rank(order, content, cluster, stream, fetched, rank) for rank in range(world)]
    nodes = []
    for first in range(0, world, cluster.ranks_per_node):
        here = range(first, first + cluster.ranks_per_node)
        reads = node_reads(dataset, order, here, world)
        requests = epoch_requests(
            reads, cache_bytes, validations=validations, resident=stream.resident
        )
        if not cluster.remote:
            requests = Requests(), Requests()
        nodes.append(_node(reads, requests, (cache_bytes, least), ranks[first : here.stop]))
    node, rank = _most(nodes), _most(ranks)
    limit = None if cluster.gpu_bytes is None else resident_limit(cluster.gpu_bytes)
    epoch = _epoch(order, validations, nodes)
    return Capacity(
        cluster=replace(cluster, shard_drawings_per_second=rate),
        drawings={split: sum(map(sum, dataset.blocks[split])) for split in SPLITS},
        shards={split: len(dataset.blocks[split]) for split in SPLITS},
        shard_bytes={split: sum(dataset.shard_bytes[split]) for split in SPLITS},
        sharding=sharding(dataset, cluster.shard_workers, rate),
        epoch=epoch,
        node=node,
        rank=rank,
        resident=stream.resident,
        resident_fits=None if limit is None else rank.resident_bytes <= limit,
        resident_gpus=None if limit is None else -(-content.resident(order.drawings) // limit),
        rates=_rates(cluster, epoch, node, rank),
    )


def _node(
    reads: NodeReads, requests: tuple[Requests, Requests], cache: tuple[int, int], ranks: list[Rank]
) -> Node:
    cold, warm = requests
    cache_bytes, cache_least_bytes = cache
    return Node(
        loader_bytes=sum(rank.loader_bytes for rank in ranks),
        cache_bytes=cache_bytes,
        cache_least_bytes=cache_least_bytes,
        cache_all_bytes=max(reads.cache_bytes, cache_least_bytes),
        read_bytes=reads.by_block["train"].bytes,
        decoded_bytes=reads.decoded_bytes,
        cold=cold,
        warm=warm,
    )


def _epoch(order: Order, validations: int, nodes: Sequence[Node]) -> Epoch:
    lengths = [stop - start for start, stop in map(order.lane_range, range(order.lanes))]
    return Epoch(
        global_batch=order.global_batch,
        steps=order.steps,
        dropped_drawings=order.dropped_drawings,
        lanes=order.lanes,
        least_lane_drawings=min(lengths),
        most_lane_drawings=max(lengths),
        validations=validations,
        cold=sum((node.cold for node in nodes), Requests()),
        warm=sum((node.warm for node in nodes), Requests()),
    )


def _rates(cluster: Cluster, epoch: Epoch, node: Node, rank: Rank) -> Rates | None:
    """Every step waits for the rank with the largest share."""
    if cluster.drawings_per_second is None:
        return None
    seconds = epoch.steps * rank.batch_drawings / cluster.drawings_per_second
    return Rates(
        epoch_seconds=seconds,
        store_bytes_per_second=epoch.cold.bytes / seconds,
        node_read_bytes_per_second=node.read_bytes / seconds,
        node_decoded_bytes_per_second=node.decoded_bytes / seconds,
    )


_Most = TypeVar("_Most", Rank, Node)


def _most(each: Sequence[_Most]) -> _Most:
    """Return the maximum of every field."""
    names = [field.name for field in fields(each[0])]
    return replace(each[0], **{name: max(getattr(it, name) for it in each) for name in names})


def _shards_at_once(order: Order, cluster: Cluster, stream: Stream) -> int:
    """Return the shards that a node's ranks read alternately: one per lane of every rank."""
    shares = (order.share(rank, cluster.world_size) for rank in range(cluster.world_size))
    lanes = 1 if stream.resident else max(len(share.lanes) for share in shares)
    return min(lanes * cluster.ranks_per_node, len(order.shards))


def _cache_bytes(cluster: Cluster, stream: Stream, least_bytes: int) -> int:
    """Return the size of a node's cache, 0 for none; refuse one that the loader would not use."""
    if cluster.remote and 0 < stream.cache_bytes < least_bytes:
        raise RefusedError(
            flag("stream.cache_bytes"),
            stream.cache_bytes,
            f"a node's ranks read alternately from shards of {least_bytes:,} bytes in total",
            f"Use {flag('stream.cache_bytes', least_bytes)} or more, or 0 for no cache and one "
            "request per block",
            needed_bytes=least_bytes,
        )
    return stream.cache_bytes if cluster.remote else 0


def _rank(
    order: Order, content: ContentBytes, cluster: Cluster, stream: Stream, shard_bytes: int,
    rank: int,
) -> Rank:  # fmt: skip
    """Return one rank's needs; `shard_bytes` are held while a shard is fetched into the cache."""
    share = order.share(rank, cluster.world_size)
    count = resident_drawings(order, share)
    loader_bytes = plan_memory(
        order,
        share,
        content,
        memory_bytes=stream.memory_bytes,
        threads=stream.threads or MOST_THREADS,
        shard_bytes=0 if stream.resident else shard_bytes,
        pin=cluster.gpu_bytes is not None,
    ).bytes
    if stream.resident:
        if cluster.gpu_bytes is not None:
            limit = resident_limit(cluster.gpu_bytes)
            memory = f"--gpu-bytes {cluster.gpu_bytes}"
            check_resident(order, share, content, limit_bytes=limit, memory=memory)
        loader_bytes = content.resident_on_host(count)  # the drawings are on the GPU
    return Rank(share.drawings, len(share.lanes), loader_bytes, count, content.resident(count))
