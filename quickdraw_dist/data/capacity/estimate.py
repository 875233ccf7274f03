"""What a run will need, before it needs it: pure arithmetic over the outline of a dataset, the
order of a run and the memory of its loader. Nothing is read, nothing is asked of a store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings, Stream
from quickdraw_dist.data.capacity.outline import Outline
from quickdraw_dist.data.capacity.requests import Requests, Sharding, sharding
from quickdraw_dist.data.capacity.traffic import NodeReads, epoch_requests, node_reads
from quickdraw_dist.data.drawings.drawing import PIXELS
from quickdraw_dist.data.order.lanes import resolve_lanes
from quickdraw_dist.data.order.memory import (
    MOST_THREADS,
    RESIDENT_BYTES,
    RESIDENT_FRACTION,
    plan_memory,
    resident_drawings,
)
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.shards.plan import SPLITS

SHARD_DRAWINGS_PER_SECOND = 200_000.0
"""Of a process that shards with gzip to a local disk: 249,000 were measured for drawings that cost
nothing to read, rounded down. To read as many from a bucket takes 160 MB/s."""


@dataclass(frozen=True)
class Cluster:
    """Where it will run. The numbers are 1 or more."""

    world_size: int = 1
    nodes: int = 1
    remote: bool = True  # the dataset lies in a bucket
    gpu_bytes: int | None = None  # memory of one GPU; None: not known
    drawings_per_second: float | None = None  # that one rank trains; None: not known
    shard_workers: int = 1  # processes that build groups, each a command of its own
    shard_drawings_per_second: float = SHARD_DRAWINGS_PER_SECOND  # of one of them

    def __post_init__(self) -> None:
        """Refuse what no launcher starts."""
        if self.world_size % self.nodes:
            right = -(-self.world_size // self.nodes) * self.nodes
            raise RefusedError(
                f"--world-size {self.world_size}: not a multiple of --nodes {self.nodes}, and all "
                f"nodes have the same number of ranks; {right} is right"
            )

    @property
    def ranks_a_node(self) -> int:
        """Ranks of one node."""
        return self.world_size // self.nodes


@dataclass(frozen=True)
class Rank:
    """The most that any rank needs."""

    batch_drawings: int  # its part of a global batch
    lanes: int
    loader_bytes: int  # in the host
    resident_drawings: int
    resident_bytes: int  # with `stream.resident`


@dataclass(frozen=True)
class Node:
    """The most that any node needs."""

    loader_bytes: int  # in the host
    cache_bytes: int  # as set; 0: none, or a local dataset
    cache_least_bytes: int  # one shard for every lane of every rank, or it is not used
    cache_all_bytes: int  # with so much, later epochs ask the store for nothing
    read_bytes: int  # of an epoch, compressed, from wherever they are
    decoded_bytes: int  # of an epoch
    cold: Requests  # of an epoch with an empty cache
    warm: Requests  # of an epoch that is not the first


@dataclass(frozen=True)
class Epoch:
    """One pass over the training split, and the validation that belongs to it."""

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
    """What training at the given drawings/s needs; reading, if resident, in the first epoch."""

    epoch_seconds: float
    store_bytes_per_second: float  # of all nodes, with empty caches
    node_read_bytes_per_second: float  # compressed, from the store, the cache or the disk
    node_decoded_bytes_per_second: float


@dataclass(frozen=True)
class Capacity:
    """The answer."""

    cluster: Cluster
    drawings: dict[str, int]  # by split
    shards: dict[str, int]  # by split
    shard_bytes: dict[str, int]  # by split
    sharding: Sharding
    epoch: Epoch
    node: Node
    rank: Rank
    resident: bool  # as set
    resident_fits: bool | None  # None: not known how much memory a GPU has
    rates: Rates | None  # None: no drawings/s were given


def capacity(dataset: Outline, cluster: Cluster, settings: Settings) -> Capacity:
    """What sharding, and the nodes and ranks of a run, need with these settings.

    Raises:
        RefusedError: something cannot work; names the setting, its value and what would be right.
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
    ranks = [_rank(order, cluster, stream, fetched, rank) for rank in range(world)]
    nodes = []
    for first in range(0, world, cluster.ranks_a_node):
        here = range(first, first + cluster.ranks_a_node)
        reads = node_reads(dataset, order, here, world)
        asked = epoch_requests(
            reads, cache_bytes, validations=validations, resident=stream.resident
        )
        if not cluster.remote:
            asked = Requests(), Requests()
        nodes.append(_node(reads, asked, (cache_bytes, least), ranks[first : here.stop]))
    node, rank, room = _most(nodes), _most(ranks), _resident_room(cluster)
    epoch = _epoch(order, validations, nodes)
    return Capacity(
        cluster=cluster,
        drawings={split: sum(map(sum, dataset.blocks[split])) for split in SPLITS},
        shards={split: len(dataset.blocks[split]) for split in SPLITS},
        shard_bytes={split: sum(dataset.shard_bytes[split]) for split in SPLITS},
        sharding=sharding(dataset, cluster.shard_workers, cluster.shard_drawings_per_second),
        epoch=epoch,
        node=node,
        rank=rank,
        resident=stream.resident,
        resident_fits=None if room is None else rank.resident_bytes <= room,
        rates=_rates(cluster, epoch, node, rank),
    )


def _node(
    reads: NodeReads, asked: tuple[Requests, Requests], cache: tuple[int, int], ranks: list[Rank]
) -> Node:
    cold, warm = asked
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
    """Every step waits for the rank with the largest part."""
    if cluster.drawings_per_second is None:
        return None
    seconds = epoch.steps * rank.batch_drawings / cluster.drawings_per_second
    return Rates(
        epoch_seconds=seconds,
        store_bytes_per_second=epoch.cold.bytes / seconds,
        node_read_bytes_per_second=node.read_bytes / seconds,
        node_decoded_bytes_per_second=node.decoded_bytes / seconds,
    )


_Need = TypeVar("_Need", Rank, Node)


def _most(needs: Sequence[_Need]) -> _Need:
    """The most of every figure."""
    names = [field.name for field in fields(needs[0])]
    return replace(needs[0], **{n: max(getattr(need, n) for need in needs) for n in names})


def _shards_at_once(order: Order, cluster: Cluster, stream: Stream) -> int:
    """Shards that the ranks of a node read from in turns: one of every lane of each rank."""
    shares = (order.share(rank, cluster.world_size) for rank in range(cluster.world_size))
    lanes = 1 if stream.resident else max(len(share.lanes) for share in shares)
    return min(lanes * cluster.ranks_a_node, len(order.shards))


def _cache_bytes(cluster: Cluster, stream: Stream, least_bytes: int) -> int:
    """Size of a node's cache, 0 for none; refuses one that the loader would pass over."""
    if cluster.remote and 0 < stream.cache_bytes < least_bytes:
        raise RefusedError(
            f"--stream.cache_bytes {stream.cache_bytes}: the ranks of a node read in turns from "
            f"shards that take {least_bytes:,} bytes; at least {least_bytes} is right, or 0: no "
            "cache, one request a block"
        )
    return stream.cache_bytes if cluster.remote else 0


def _rank(order: Order, cluster: Cluster, stream: Stream, shard_bytes: int, rank: int) -> Rank:
    """One rank; `shard_bytes` are held while a shard is fetched into the cache."""
    share = order.share(rank, cluster.world_size)
    count = resident_drawings(order, share)
    if stream.resident:
        _refuse_resident(order, cluster, count)
        loader_bytes = count * (RESIDENT_BYTES - PIXELS)
    else:
        loader_bytes = plan_memory(
            order,
            share,
            memory_bytes=stream.memory_bytes,
            threads=stream.threads or MOST_THREADS,
            shard_bytes=shard_bytes,
            pin=cluster.gpu_bytes is not None,
        ).bytes
    return Rank(share.drawings, len(share.lanes), loader_bytes, count, count * RESIDENT_BYTES)


def _resident_room(cluster: Cluster) -> int | None:
    """Bytes of a GPU that drawings may take, None where that is not known."""
    return None if cluster.gpu_bytes is None else int(cluster.gpu_bytes * RESIDENT_FRACTION)


def _refuse_resident(order: Order, cluster: Cluster, count: int) -> None:
    """Refuse a rank whose `count` drawings do not fit its GPU."""
    needed, room = count * RESIDENT_BYTES, _resident_room(cluster)
    if room is not None and needed > room:
        ranks = -(-order.drawings * RESIDENT_BYTES // max(room, 1))
        raise RefusedError(
            f"--stream.resident true: a rank's lanes hold {count:,} drawings = {needed:,} bytes, "
            f"and {RESIDENT_FRACTION:.0%} of --gpu-bytes {cluster.gpu_bytes} are {room:,}; "
            f"--world-size {ranks} or a little more, or --stream.resident false, is right"
        )
