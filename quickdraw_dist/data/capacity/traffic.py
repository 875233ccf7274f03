"""What a node reads in an epoch, and what it asks of a store for that: pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from quickdraw_dist.data.capacity.outline import Outline
from quickdraw_dist.data.capacity.requests import Requests
from quickdraw_dist.data.order.order import Order, rank_part, sequential
from quickdraw_dist.data.shards.blocks import BYTES_PER_DRAWING


@dataclass(frozen=True)
class NodeReads:
    """What the ranks of a node read of each split in an epoch, every split once. Without a cache a
    lane may ask for a window less: one that only holds drawings that the epoch leaves out."""

    by_block: dict[str, Requests]  # every rank for itself, one request a block: without a cache
    by_shard: dict[str, Requests]  # every shard once for all ranks: into an empty cache
    decoded_bytes: int  # of the training split

    @property
    def cache_bytes(self) -> int:
        """A cache that holds so much is asked for everything but the first time."""
        return sum(requests.bytes for requests in self.by_shard.values())


def node_reads(dataset: Outline, order: Order, ranks: range, world_size: int) -> NodeReads:
    """What the node with these ranks reads. A rank reads its lanes from end to end, and decodes
    all of a block in which a lane begins or ends."""
    parts = [rank_part(order.global_batch, rank, world_size) for rank in ranks]
    lanes = [lane for part in parts for lane, _, _ in order.segments(0, *part)]
    pieces = {
        "train": [piece for lane in lanes for piece in order.lane_pieces(lane)],
        "val": [
            piece for rank in ranks for piece in sequential(dataset.blocks["val"], rank, world_size)
        ],
    }
    by_block, by_shard, decoded = {}, {}, {}
    for split, of in pieces.items():
        blocks = [(piece.shard, dataset.blocks[split][piece.shard][piece.block]) for piece in of]
        sizes = [dataset.bytes_of(split, shard, count) for shard, count in blocks]
        shards = {piece.shard for piece in of}
        whole = [dataset.shard_bytes[split][shard] for shard in shards]
        by_block[split] = Requests(0, len(blocks), sum(sizes))
        by_shard[split] = Requests(0, len(shards), sum(whole))
        decoded[split] = sum(count for _, count in blocks) * BYTES_PER_DRAWING
    return NodeReads(by_block, by_shard, decoded["train"])


def epoch_requests(
    reads: NodeReads, cache_bytes: int, *, validations: int, resident: bool
) -> tuple[Requests, Requests]:
    """What a node asks of the store in a cold epoch, and in one that is not the first.

    A cache that is too small for all that the node reads saves about nothing from epoch to epoch:
    what it has evicted is what comes next.

    Args:
        reads: of the node.
        cache_bytes: its cache's size; 0: it has none.
        validations: in an epoch.
        resident: the ranks keep the training split.
    """
    each = reads.by_shard if cache_bytes else reads.by_block
    if cache_bytes and reads.cache_bytes <= cache_bytes:
        return each["train"] + each["val"], Requests()
    val = each["val"]
    validation = Requests(0, validations * val.class_b, validations * val.bytes)
    return each["train"] + validation, validation if resident else each["train"] + validation
