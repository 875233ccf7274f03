"""What the tests of the stream share: ways to cut an epoch, and what ranks are given of one."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings, Stream
from quickdraw_dist.data.feed import ShardFeed
from quickdraw_dist.data.order.digest import OrderDigest, mix_identities
from quickdraw_dist.data.order.memory import LoaderMemory, least_batches
from quickdraw_dist.data.order.order import Order, rank_part
from quickdraw_dist.data.order.schedule import longest_need
from quickdraw_dist.data.shards.manifest import Manifest
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.data.stream.loader import TrainLoader
from quickdraw_dist.data.stream.prefetch import ShardsAhead
from quickdraw_dist.data.stream.reader import SplitReader
from quickdraw_dist.distributed.ranks import World
from tests.support.datasets import Dataset

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
"""A step is a small part of a window of 64; the epoch leaves 72 drawings out."""

LONG_STEPS = Shape(global_batch=800, lanes=8, window_blocks=1)
"""A step takes 100 drawings of a lane, over several windows of at most 32."""

UNEVEN = Shape(global_batch=133, lanes=19, window_blocks=3)
"""Nothing divides: parts differ in size, and ranks share lanes."""

SHAPES = {"usual": USUAL, "long": LONG_STEPS, "uneven": UNEVEN}


def least_bytes(error: RefusedError) -> int:
    """The memory that a refusal says is enough."""
    (number,) = re.findall(r" ([\d,]+) bytes at least; that much, ", str(error))
    return int(number.replace(",", ""))


# -- what has to come ----------------------------------------------------------------------------


@cache
def line(dataset: Dataset, shape: Shape, epoch: int) -> list[Identity]:
    """An epoch as `locate` has it, looked up in shards that tarfile and numpy alone have read."""
    order, stored = shape.order(dataset.manifest.block_counts("train")), dataset.stored("train")
    positions = range(order.steps * order.global_batch)
    return [stored[order.locate(epoch, position)] for position in positions]


def digest_of(identities: list[Identity], epoch: int, first: int = 0) -> int:
    """Of drawings delivered from a position on."""
    labels, rows = zip(*identities, strict=True) if identities else ((), ())
    positions = np.arange(first, first + len(rows), dtype=np.uint64)
    return mix_identities(epoch, positions, np.array(labels, np.uint16), np.array(rows, np.uint32))


# -- what comes ----------------------------------------------------------------------------------


class Loader(Protocol):
    """One rank's: streamed, resident, or a feed of either."""

    @property
    def part(self) -> tuple[int, int]: ...

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]: ...


def pairs(batch: Batch) -> list[Identity]:
    """The identities in a batch."""
    return list(zip(batch.labels.tolist(), batch.rows.tolist(), strict=True))


@dataclass
class Delivered:
    """What ranks got in some steps of an epoch, copied out."""

    order_digest: OrderDigest = field(default_factory=OrderDigest)
    identities: dict[tuple[int, int], list[Identity]] = field(default_factory=dict)
    pixels: dict[tuple[int, int], NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def digest(self) -> int:
        """Order digest of all of it, as training has it."""
        return int(self.order_digest.total()(), 16)

    def in_order(self) -> list[Identity]:
        """Step after step, in each one rank after rank."""
        return [identity for key in sorted(self.identities) for identity in self.identities[key]]

    def pixels_in_order(self) -> NDArray[np.uint8]:
        return np.concatenate([self.pixels[key] for key in sorted(self.pixels)])


def deliver(
    make: Callable[[int], Loader], order: Order, world_size: int, epoch: int = 0,
    first_step: int = 0, last_step: int | None = None,
) -> Delivered:  # fmt: skip
    """Run all ranks of a world, one after the other, over the steps [first, last) of an epoch."""
    result = Delivered()
    for rank in range(world_size):
        loader = make(rank)
        start, stop = rank_part(order.global_batch, rank, world_size)
        assert loader.part == (start, stop)
        step = first_step
        batches = loader.epoch(epoch, first_step)
        while step != last_step and (batch := next(batches, None)) is not None:
            assert batch.step == step
            assert batch.drawings.shape == (stop - start, 28, 28)
            assert batch.drawings.dtype == torch.uint8
            assert batch.labels.shape == (stop - start,)
            assert batch.labels.dtype == torch.int64
            result.identities[step, rank] = pairs(batch)
            result.pixels[step, rank] = batch.drawings.cpu().numpy().copy()
            first = step * order.global_batch + start
            result.order_digest.add(epoch, first, batch.labels, batch.rows)
            step += 1
        batches.close()
        assert step == (order.steps if last_step is None else last_step)
    return result


# -- the loader ----------------------------------------------------------------------------------


def open_reader(
    folder: str, dataset: Manifest, split: str = "train", cache: Path | None = None,
    cache_bytes: int = 10**9,
) -> SplitReader:  # fmt: skip
    """A split of a dataset, through a node cache of that size where one is named."""
    stream = Stream() if cache is None else Stream(cache_folder=str(cache), cache_bytes=cache_bytes)
    return SplitReader(folder, dataset, split, stream)


def open_local(dataset: Dataset, split: str = "train") -> SplitReader:
    return open_reader(dataset.folder, dataset.manifest, split)


def make_loader(
    reader: SplitReader, order: Order, rank: int = 0, world_size: int = 1, *, threads: int = 2,
    more_batches: int | None = None, shards_ahead: int = 2, pin: bool = False,
) -> TrainLoader:  # fmt: skip
    """A loader with room for that many batches more than the least; None: for all it can use."""
    more = longest_need(order) if more_batches is None else more_batches
    memory, ahead = LoaderMemory(least_batches(order) + more, threads, fetchers=2, bytes=0), None
    if reader.cache is not None:
        ahead = partial(ShardsAhead, reader, reader.cache, fetchers=2, ahead=shards_ahead)
    part = rank_part(order.global_batch, rank, world_size)
    return TrainLoader(reader.piece, order, part, memory, pin=pin, ahead=ahead)


class InTurn(ThreadPoolExecutor):
    """Threads that have done a task before the next one is given: what may be written, is."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(fn, *args, **kwargs)
        wait([future])
        return future


def identities_of(loader: Loader, epoch: int = 0, first_step: int = 0) -> list[Identity]:
    """All that one rank gets of the rest of an epoch."""
    return [pair for batch in loader.epoch(epoch, first_step) for pair in pairs(batch)]


def flip_a_byte(path: Path) -> None:
    """One bit of it, in the middle of some block's pixels."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


# -- a feed, as a run opens it -------------------------------------------------------------------


def feed_settings(data: str, cache: Path, shape: Shape, **stream: object) -> Settings:
    """Return the settings of a run on the CPU that cuts its epochs by a shape."""
    cut = {"lanes": shape.lanes, "window_blocks": shape.window_blocks, "cache_folder": str(cache)}
    return Settings.model_validate(
        {
            "data": data,
            "train": {"global_batch": shape.global_batch, "seed": 5, "device": "cpu"},
            "evaluation": {"batch": 32},
            "stream": cut | stream,
        }
    )


def open_feed(settings: Settings, dataset: Dataset, rank: int = 0, size: int = 1) -> ShardFeed:
    """Open the feed of one rank, all of them on one node."""
    world = World(rank, size, rank, size, torch.device("cpu"))
    return ShardFeed(settings, dataset.manifest, world, settings.stream.lanes)
