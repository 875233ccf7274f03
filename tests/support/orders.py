"""Small splits of any cut for property tests, and a reader of them that needs no files."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from quickdraw_dist.base.storage import Scratch
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.reader import SplitReader

Place = tuple[int, int, int]
"""Shard, block and index in the block: a drawing."""


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Small splits of uneven shards and blocks, with any lanes, batch and window that fit."""
    block = st.integers(1, 40)
    shards = draw(st.lists(st.lists(block, min_size=1, max_size=6), min_size=1, max_size=9))
    total = sum(map(sum, shards))
    lanes = draw(st.integers(1, min(total, 16)))
    lane_batch = draw(st.integers(1, total // lanes))
    return Order(
        tuple(tuple(blocks) for blocks in shards),
        global_batch=lanes * lane_batch,
        lanes=lanes,
        window_blocks=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


def lane_places(order: Order, epoch: int, lane: int) -> list[Place]:
    """A lane's drawings in the order of an epoch, straight from its windows."""
    places = []
    for window in order.windows(epoch, lane):
        inside = [(p.shard, p.block, at) for p in window.pieces for at in range(p.start, p.stop)]
        assert window.start == len(places)
        assert window.count == len(inside)
        places.extend(inside[at] for at in window.shuffled())
    return places


class Numbered(SplitReader):
    """Blocks whose drawings tell where they lie."""

    def __init__(self, order: Order) -> None:
        self.block_counts, self.cache = order.shards, None

    def read(self, shard: int, number: int, scratch: Scratch | None = None) -> Block:
        at = np.arange(self.block_counts[shard][number], dtype=np.uint32)
        drawings = np.repeat(at.astype(np.uint8), 28 * 28).reshape(-1, 28, 28)
        return Block(drawings, np.full(len(at), shard, np.uint16), np.uint32(number << 16) | at)


def place_of(label: int, row: int) -> Place:
    """Where a drawing of such a reader lies."""
    return label, row >> 16, row & 0xFFFF
