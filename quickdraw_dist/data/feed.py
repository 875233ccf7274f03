"""The trainer's batches: one interface to streamed, resident and external drawings."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import torch

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError, flag
from quickdraw_dist.base.settings import Settings, Strokes
from quickdraw_dist.data.external.feed import ExternalFeed
from quickdraw_dist.data.external.shards import ExternalShards, check_fit, find_splits, open_shards
from quickdraw_dist.data.order.content_bytes import content_bytes
from quickdraw_dist.data.order.lanes import resolve_lanes
from quickdraw_dist.data.order.memory import LoaderMemory, default_threads, plan_memory
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.shards import manifest
from quickdraw_dist.data.shards.schema import Manifest
from quickdraw_dist.data.stream.batch import Batch, StrokeBatch, noise
from quickdraw_dist.data.stream.evaluation_loader import evaluation_batches
from quickdraw_dist.data.stream.loader import TrainLoader
from quickdraw_dist.data.stream.prefetch import ShardPrefetch
from quickdraw_dist.data.stream.reader import SplitReader
from quickdraw_dist.data.stream.resident.drawings import ResidentDrawings
from quickdraw_dist.data.stream.resident.loaders import (
    DeviceLoader,
    HostLoader,
    resident_loader,
)
from quickdraw_dist.distributed.ranks import World

Dataset = Manifest | ExternalShards
"""A dataset before any drawing is read."""


class DatasetInfo(Protocol):
    """Classes, contents digest and normalisation of a dataset, whatever its format."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""

    @property
    def content(self) -> str:
        """What drawings are stored as: "bitmaps" or "strokes"."""

    @property
    def digest(self) -> str:
        """Digest of the contents, which a checkpoint stores."""

    @property
    def pixel_mean(self) -> float:
        """Mean of the training drawings' pixels, on a scale of 0 to 1."""

    @property
    def pixel_std(self) -> float:
        """Standard deviation of the same pixels, on the same scale."""


class Feed(Protocol):
    """One rank's batches; every rank gets the same number of them."""

    drawings: int  # that count as one epoch
    steps: int  # per epoch
    lanes: int  # 0 for external data, which has none
    share: Share  # this rank's, of every global batch

    @property
    def dataset(self) -> DatasetInfo:
        """The dataset that the drawings are from."""

    def noise(self) -> torch.Tensor | StrokeBatch:
        """Return drawings of noise, as many as `share`, in the form of a batch's: for first passes
        that count for nothing."""

    def start_lines(self, first_step: int) -> list[str]:
        """Return lines to print when a run starts at this step of an epoch."""

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches from `first_step` to the end of an epoch."""

    def validation(self) -> Iterator[Batch] | None:
        """Yield this rank's range of the validation split; None if there is no such split."""


def open_dataset(settings: Settings) -> Dataset:
    """Open the dataset that the settings name, without reading a drawing.

    Raises:
        RefusedError: it does not exist, or `stream.reader` cannot read it.
        StorageError: the store failed.
    """
    if settings.stream.reader == "webdataset":
        return open_shards(settings)
    for name in ("epoch_drawings", "validation_data", "class_names"):
        if value := getattr(settings.stream, name):
            webdataset = flag("stream.reader", "webdataset")
            raise RefusedError(
                flag(f"stream.{name}"),
                value,
                "shards made by jobs.shard state this themselves",
                f"Remove it, or read external data with {webdataset}",
            )
    try:
        return manifest.read_trainable(settings.data)
    except RefusedError as error:
        if not _has_only_tars(settings.data):
            raise
        tars = f"train on the .tar files there with {flag('stream.reader', 'webdataset')}"
        remedy = ", or ".join(filter(None, (error.remedy, tars)))
        raise RefusedError(error.subject, error.value, error.problem, remedy) from None


def _has_only_tars(data: str) -> bool:
    """Whether there are .tar files, but neither a manifest nor the first files of one."""
    ours = storage.exists(storage.join(data, manifest.NAME)) or "parts" in storage.folders(data)
    return not ours and bool(find_splits(data)[0])


def check_dataset(settings: Settings, dataset: Dataset, world_size: int) -> None:
    """Check that dataset, settings and ranks fit together, before any drawing is read or any other
    rank waited for.

    Raises:
        RefusedError: they do not fit together.
    """
    if dataset.content != "strokes":
        _refuse_settings_of_strokes(settings)
    if isinstance(dataset, ExternalShards):
        check_fit(settings, dataset, world_size)
    else:
        make_order(settings, dataset, settings.stream.lanes, world_size)


def _refuse_settings_of_strokes(settings: Settings) -> None:
    """Refuse what a dataset of bitmaps would leave unused.

    Raises:
        RefusedError: a setting of strokes is not the default.
    """
    for name, default in Strokes():
        if (value := getattr(settings.strokes, name)) != default:
            raise RefusedError(
                flag(f"strokes.{name}"),
                value,
                f"{settings.data} holds bitmaps, and this is of drawings stored as strokes",
                f"Remove it, or use a dataset made with {flag('shard.content', 'strokes')}",
            )


def open_feed(
    settings: Settings, dataset: Dataset, world: World, saved: Mapping[str, Any] | None
) -> Feed:
    """Open this rank's batches; all ranks call it at the same time. `saved` is the meta of the
    checkpoint that is resumed, if any.

    Raises:
        RefusedError: settings, dataset, ranks and memory do not fit together.
        StorageError, OSError: an external shard could not be read.
    """
    if isinstance(dataset, ExternalShards):
        return ExternalFeed(settings, dataset, world, saved)
    lanes: int | str = settings.stream.lanes
    if saved is not None and saved["lanes"]:
        lanes = started_with = int(saved["lanes"])
        if started_with < world.size:
            raise RefusedError(
                settings.output,
                None,
                f"this run was started with {lanes} lanes, and each of the {world.size} ranks "
                "needs at least one",
                f"Resume it on {lanes} ranks or fewer",
                lanes=lanes,
            )
    return ShardFeed(settings, dataset, world, lanes)


def make_order(settings: Settings, dataset: Manifest, lanes: int | str, world_size: int) -> Order:
    """Return the order of the training split.

    Raises:
        RefusedError: batch, lanes, ranks and drawings do not fit together.
    """
    batch = settings.train.global_batch
    return Order(
        dataset.block_counts("train"),
        batch,
        resolve_lanes(lanes, batch, world_size),
        settings.stream.window_blocks,
        settings.train.seed,
    )


class ShardFeed:
    """Batches from shards made by jobs.shard: exactly once per epoch, resumed at any step."""

    def __init__(
        self, settings: Settings, dataset: Manifest, world: World, lanes: int | str
    ) -> None:
        """Allocate the loader; `lanes` is the setting, or the number the run was started with.

        Raises:
            RefusedError: the settings do not fit together, or into memory.
        """
        stream = settings.stream
        self._settings, self.dataset, self._world = settings, dataset, world
        self.order = make_order(settings, dataset, lanes, world.size)
        self.drawings, self.steps = self.order.drawings, self.order.steps
        self.lanes = self.order.lanes
        self.share = self.order.share(world.rank, world.size)
        self._threads = stream.threads or default_threads(world.local_size)
        self._validation: SplitReader | None = None
        self._loader = self._resident() if stream.resident else self._streamed()

    def _reader(self, split: str, shards_at_once: int) -> SplitReader:
        settings = self._settings
        return SplitReader(settings.data, self.dataset, split, settings.stream, shards_at_once)

    def _streamed(self) -> TrainLoader:
        world, lanes = self._world, len(self.share.lanes)
        node_lanes = lanes * world.local_size
        reader = self._reader("train", node_lanes)
        shard_bytes = reader.largest_shard_bytes if reader.cache is not None else 0
        memory, prefetch = self._memory(shard_bytes), None
        if (cache := reader.cache) is not None:
            in_use = min(node_lanes, len(reader.shards))
            spare = self._settings.stream.cache_bytes // shard_bytes - in_use
            ahead = min(lanes, spare // world.local_size)
            prefetch = partial(ShardPrefetch, reader, cache, fetchers=memory.fetchers, ahead=ahead)
        return TrainLoader(
            reader.piece,
            self.order,
            self.share,
            memory,
            per_drawing=reader.per_drawing,
            pin=world.device.type == "cuda",
            prefetch=prefetch,
        )

    def _resident(self) -> HostLoader | DeviceLoader:
        world = self._world
        resident = ResidentDrawings(
            self._reader("train", world.local_size),
            self.order,
            self.share,
            self._memory(shard_bytes=0),
            local_world_size=world.local_size,
            device=world.device,
        )
        return resident_loader(resident)

    def _memory(self, shard_bytes: int) -> LoaderMemory:
        return plan_memory(
            self.order,
            self.share,
            content_bytes(self.dataset.tiles_per_drawing),
            memory_bytes=self._settings.stream.memory_bytes,
            threads=self._threads,
            shard_bytes=shard_bytes,
            pin=self._world.device.type == "cuda",
        )

    def noise(self) -> torch.Tensor | StrokeBatch:
        """Return drawings of noise, as many as `share`, in the form of a batch's."""
        return noise(self.share.drawings, self.dataset.tiles_per_drawing)

    def start_lines(self, first_step: int) -> list[str]:
        """Return lines to print when a run starts."""
        lines = [
            f"{self.drawings:,} drawings; an epoch is {self.steps:,} steps of "
            f"{self.order.global_batch:,} and drops {self.order.dropped_drawings:,}, other ones in "
            "every epoch"
        ]
        if not self.dataset.drawings("val"):
            lines.append("no validation split (--shard.val_fraction 0): nothing is measured")
        return lines

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches from `first_step` to the end of an epoch."""
        return self._loader.epoch(epoch, first_step)

    def validation(self) -> Iterator[Batch] | None:
        """Yield this rank's contiguous range of the validation split, every drawing once; None
        where it has no drawings."""
        if not self.dataset.drawings("val"):
            return None
        if self._validation is None:  # kept, as it remembers that a cache cannot be used
            self._validation = self._reader("val", self._world.local_size)
        return evaluation_batches(
            self._validation,
            rank=self._world.rank,
            world_size=self._world.size,
            batch=self._settings.evaluation.batch,
            threads=self._threads,
            pin=self._world.device.type == "cuda",
        )
