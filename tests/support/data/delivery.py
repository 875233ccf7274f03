"""Epochs of the small dataset: the expected order, and what the ranks' loaders deliver."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Stream
from quickdraw_dist.data.order.digest import OrderDigest, mix_identities
from quickdraw_dist.data.order.memory import LoaderMemory, least_batches
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.schedule import steps_per_window
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.shards.schema import Manifest
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.data.stream.loader import TrainLoader
from quickdraw_dist.data.stream.prefetch import ShardPrefetch
from quickdraw_dist.data.stream.reader import SplitReader
from tests.support.data.datasets import Dataset, as_bytes

WORLDS = (1, 2, 3, 4, 7, 8)

Identity = tuple[int, int]
"""(label, row)."""


@dataclass(frozen=True)
class Shape:
    """How an epoch of the small dataset's 1,800 training drawings is cut."""

    global_batch: int
    lanes: int
    window_blocks: int

    def order(self, block_counts: tuple[tuple[int, ...], ...]) -> Order:
        return Order(block_counts, self.global_batch, self.lanes, self.window_blocks, seed=5)


USUAL = Shape(global_batch=96, lanes=8, window_blocks=2)
"""A step is a small part of a window of 64; the epoch drops 72 drawings."""

LONG_STEPS = Shape(global_batch=800, lanes=8, window_blocks=1)
"""A step takes 100 drawings of a lane, over several windows of at most 32."""

UNEVEN = Shape(global_batch=133, lanes=19, window_blocks=3)
"""Nothing divides: shares differ in size, and ranks share lanes."""

LAYOUTS = {
    "gzip": {"compression": "gzip"},
    "none": {"compression": "none"},
    "per_drawing": {"layout": "per_drawing"},
}

SHAPES = {"usual": USUAL, "long": LONG_STEPS, "uneven": UNEVEN}


def least_bytes(error: RefusedError) -> int:
    """The memory that a refusal calls enough."""
    return int(str(error.needed_bytes))


# -- expected ----------------------------------------------------------------------------


@cache
def line(dataset: Dataset, shape: Shape, epoch: int) -> list[Identity]:
    """An epoch as `locate` has it, looked up in shards that tarfile and numpy alone have read."""
    order, stored = shape.order(dataset.manifest.block_counts("train")), dataset.stored("train")
    positions = range(order.steps * order.global_batch)
    return [stored[order.locate(epoch, position)] for position in positions]


def digest_of(identities: list[Identity], epoch: int, first: int = 0) -> int:
    """Digest of drawings delivered from a position on."""
    labels, rows = zip(*identities, strict=True) if identities else ((), ())
    positions = np.arange(first, first + len(rows), dtype=np.uint64)
    return mix_identities(epoch, positions, np.array(labels, np.uint16), np.array(rows, np.uint32))


# -- delivered ----------------------------------------------------------------------------------


class Loader(Protocol):
    """A rank's loader: streamed, resident, or a feed of either."""

    @property
    def share(self) -> Share: ...

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]: ...


def pairs(batch: Batch) -> list[Identity]:
    """The identities in a batch."""
    return list(zip(batch.labels.tolist(), batch.rows.tolist(), strict=True))


@dataclass
class Delivered:
    """What ranks were delivered in some steps of an epoch, copied."""

    order_digest: OrderDigest = field(default_factory=OrderDigest)
    identities: dict[tuple[int, int], list[Identity]] = field(default_factory=dict)
    drawings: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)

    @property
    def digest(self) -> int:
        """Order digest of all of it, as training has it."""
        return int(self.order_digest.total()(), 16)

    def in_order(self) -> list[Identity]:
        """Identities step by step, and rank by rank in each."""
        return [identity for key in sorted(self.identities) for identity in self.identities[key]]

    def drawings_in_order(self) -> list[bytes]:
        """What `as_bytes` has of the drawings, in the same order."""
        return [drawing for key in sorted(self.drawings) for drawing in self.drawings[key]]


def deliver(
    make: Callable[[int], Loader], order: Order, world_size: int, epoch: int = 0,
    first_step: int = 0, last_step: int | None = None,
) -> Delivered:  # fmt: skip
    """Run all ranks of a world, one after the other, over the steps [first, last) of an epoch."""
    result = Delivered()
    for rank in range(world_size):
        loader = make(rank)
        share = order.share(rank, world_size)
        assert loader.share == share
        step = first_step
        batches = loader.epoch(epoch, first_step)
        while step != last_step and (batch := next(batches, None)) is not None:
            assert batch.step == step
            if isinstance(batch.drawings, torch.Tensor):
                assert batch.drawings.shape == (share.drawings, 28, 28)
                assert batch.drawings.dtype == torch.uint8
            assert batch.labels.shape == (share.drawings,)
            assert batch.labels.dtype == torch.int64
            result.identities[step, rank] = pairs(batch)
            result.drawings[step, rank] = as_bytes(batch.drawings)
            result.order_digest.add(epoch, share.position(step), batch.labels, batch.rows)
            step += 1
        batches.close()
        assert step == (order.steps if last_step is None else last_step)
    return result


# -- the loader ----------------------------------------------------------------------------------


def open_reader(
    folder: str, dataset: Manifest, split: str = "train", cache: Path | None = None,
    cache_bytes: int = 10**9,
) -> SplitReader:  # fmt: skip
    """A split of a dataset, through a node cache of `cache_bytes` where a folder is given."""
    stream = Stream() if cache is None else Stream(cache_folder=str(cache), cache_bytes=cache_bytes)
    return SplitReader(folder, dataset, split, stream)


def open_local(dataset: Dataset, split: str = "train") -> SplitReader:
    return open_reader(dataset.folder, dataset.manifest, split)


def make_loader(
    reader: SplitReader, order: Order, rank: int = 0, world_size: int = 1, *, threads: int = 2,
    more_batches: int | None = None, shards_ahead: int = 2, pin: bool = False,
) -> TrainLoader:  # fmt: skip
    """A loader with `more_batches` slots beyond the least; None for all that it can use."""
    more = steps_per_window(order) if more_batches is None else more_batches
    memory, prefetch = LoaderMemory(least_batches(order) + more, threads, fetchers=2, bytes=0), None
    if reader.cache is not None:
        prefetch = partial(ShardPrefetch, reader, reader.cache, fetchers=2, ahead=shards_ahead)
    share = order.share(rank, world_size)
    return TrainLoader(
        reader.piece, order, share, memory,
        per_drawing=reader.per_drawing, pin=pin, prefetch=prefetch,
    )  # fmt: skip


class InTurn(ThreadPoolExecutor):
    """A pool that finishes each task before `submit` returns: all that may be written has been."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(fn, *args, **kwargs)
        wait([future])
        return future


def identities_of(loader: Loader, epoch: int = 0, first_step: int = 0) -> list[Identity]:
    """What one rank is delivered of the rest of an epoch."""
    return [pair for batch in loader.epoch(epoch, first_step) for pair in pairs(batch)]


def flip_a_byte(path: Path) -> None:
    """Flip one bit in the middle of a block's largest array."""
    with tarfile.open(path) as tar:
        array = max(tar, key=lambda member: member.size)
    data = bytearray(path.read_bytes())
    data[array.offset_data + array.size // 2] ^= 0x10
    path.write_bytes(data)
