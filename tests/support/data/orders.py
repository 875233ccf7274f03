"""Small splits of any cut for property tests, and a reader of them that needs no files."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from quickdraw_dist.base.storage import Scratch
from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.drawings.strokes.tiles import TilesPerDrawing
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.batch import StrokeBatch
from quickdraw_dist.data.stream.reader import SplitReader

Location = tuple[int, int, int]
"""Shard, block and index in the block of a drawing."""

RankEpoch = tuple[Order, Share, int, int]
"""An order, a rank's share, an epoch, and the step that the rank starts with."""


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


@st.composite
def rank_epochs(draw: st.DrawFn) -> RankEpoch:
    """Any epoch of any rank of any world, from any step on."""
    order = draw(orders())
    world_size = draw(st.integers(1, min(8, order.global_batch)))
    share = order.share(draw(st.integers(0, world_size - 1)), world_size)
    return order, share, draw(st.integers(0, 3)), draw(st.integers(0, order.steps))


def lane_locations(order: Order, epoch: int, lane: int) -> list[Location]:
    """A lane's drawings in the order of an epoch, straight from its windows."""
    found = []
    for window in order.windows(epoch, lane):
        inside = [(p.shard, p.block, at) for p in window.pieces for at in range(p.start, p.stop)]
        assert window.start == len(found)
        assert window.count == len(inside)
        found.extend(inside[at] for at in window.shuffled())
    return found


class Numbered(SplitReader):
    """A reader of blocks whose drawings hold their own location."""

    def __init__(self, order: Order, content: str = "bitmaps") -> None:
        self.block_counts, self.cache = order.shards, None
        self.per_drawing = None if content == "bitmaps" else TilesPerDrawing(2.0, 1.0)

    def read(self, shard: int, number: int, scratch: Scratch | None = None) -> Block:
        at = np.arange(self.block_counts[shard][number], dtype=np.uint32)
        drawings = _bitmaps(at) if self.per_drawing is None else _strokes(at)
        return Block(drawings, np.full(len(at), shard, np.uint16), np.uint32(number << 16) | at)


def _bitmaps(numbers: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Drawings whose pixels all are the last byte of their number."""
    return np.repeat(numbers.astype(np.uint8), 28 * 28).reshape(-1, 28, 28)


def _strokes(numbers: NDArray[np.uint32]) -> Strokes:
    """Drawings of one stroke, some longer than a tile, whose points all are the last byte of their
    number."""
    points = (2 + numbers % 40).astype(np.uint16)
    x = np.repeat(numbers.astype(np.uint8), points)
    ones = np.ones(len(numbers), np.uint8)
    return Strokes(x, x, points, ones.astype(np.uint16), ones)


def numbers_in(drawings: torch.Tensor | StrokeBatch) -> list[int]:
    """The last byte of the number of every drawing that `Numbered` returned."""
    if isinstance(drawings, torch.Tensor):
        return drawings[:, 3, 4].tolist()
    tiles, owners, *_ = drawings.inputs()
    numbers = [set(tiles[owners == at].ravel().tolist()) for at in range(len(drawings))]
    assert all(map(len, numbers)), "no tile of a drawing"
    return [number for (number,) in numbers]


def location_of(label: int, row: int) -> Location:
    """The location of a drawing that `Numbered` returned."""
    return label, row >> 16, row & 0xFFFF
