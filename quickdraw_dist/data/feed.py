"""What the trainer reads from: one way in for streamed, resident and external drawings."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.data.external.feed import ExternalFeed
from quickdraw_dist.data.external.shards import ExternalShards, check_fit, find_splits, open_shards
from quickdraw_dist.data.order.memory import LoaderMemory, plan_memory, processor_share
from quickdraw_dist.data.order.order import Order, rank_part, resolve_lanes
from quickdraw_dist.data.shards import manifest
from quickdraw_dist.data.shards.manifest import Manifest
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.data.stream.evaluation_loader import evaluation_batches
from quickdraw_dist.data.stream.loader import TrainLoader
from quickdraw_dist.data.stream.prefetch import ShardsAhead
from quickdraw_dist.data.stream.reader import SplitReader
from quickdraw_dist.data.stream.resident import ResidentDrawings
from quickdraw_dist.data.stream.resident_loaders import DeviceLoader, HostLoader
from quickdraw_dist.distributed.ranks import World

Dataset = Manifest | ExternalShards
"""What is known of a dataset before any drawing is read: classes and digest at least."""


class Facts(Protocol):
    """What a run has to know of its dataset."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names; a label is an index into them."""

    @property
    def digest(self) -> str:
        """Names the contents."""

    @property
    def pixel_mean(self) -> float:
        """Of the training drawings, on a scale of 0 to 1."""

    @property
    def pixel_std(self) -> float:
        """Of the same."""


class Feed(Protocol):
    """A rank's batches: the same number of them on every rank."""

    drawings: int  # that count as an epoch
    steps: int  # in an epoch
    lanes: int  # 0: it has none
    part: tuple[int, int]  # [start, stop) of every global batch, this rank's

    @property
    def dataset(self) -> Facts:
        """Where the drawings are from."""

    def describe(self, first_step: int) -> list[str]:
        """Lines for whoever starts a run at this step of an epoch."""

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Batches from `first_step` to the end of an epoch."""

    def validation(self) -> Iterator[Batch] | None:
        """This rank's share of the validation split; None where there is none."""


def open_dataset(settings: Settings) -> Dataset:
    """The dataset that the settings name; no drawing is read.

    Raises:
        RefusedError: it is not there, or not what `stream.reader` reads; says what would be right.
        StorageError: the store failed.
    """
    if settings.stream.reader == "webdataset":
        return open_shards(settings)
    for name in ("epoch_drawings", "validation_data", "class_names"):
        if value := getattr(settings.stream, name):
            raise RefusedError(
                f"--stream.{name} {value}: our own shards say that themselves, it is for "
                "--stream.reader webdataset"
            )
    try:
        return manifest.read_trainable(settings.data)
    except RefusedError as error:
        if not _has_only_tars(settings.data):
            raise
        raise RefusedError(
            f"{error}. Or, to train on the .tar files that are there: --stream.reader webdataset"
        ) from None


def _has_only_tars(data: str) -> bool:
    """Whether there are shards, but neither a manifest nor a beginning of one."""
    ours = storage.exists(storage.join(data, manifest.NAME)) or "parts" in storage.folders(data)
    return not ours and bool(find_splits(data)[0])


def refuse_misfit(settings: Settings, dataset: Dataset, world_size: int) -> None:
    """Check dataset, batch and ranks, without reading a drawing or meeting another rank.

    Raises:
        RefusedError: they do not fit together.
    """
    if isinstance(dataset, ExternalShards):
        check_fit(settings, dataset, world_size)
    else:
        make_order(settings, dataset, settings.stream.lanes, world_size)


def open_feed(
    settings: Settings, dataset: Dataset, world: World, saved: Mapping[str, Any] | None
) -> Feed:
    """This rank's batches; all ranks call it together.

    Args:
        settings: of the run.
        dataset: as `open_dataset` gives it.
        world: the ranks.
        saved: meta of the checkpoint that is resumed, if any.

    Raises:
        RefusedError: settings, dataset, ranks and memory do not fit together.
        StorageError, OSError: an external shard could not be read.
    """
    if isinstance(dataset, ExternalShards):
        return ExternalFeed(settings, dataset, world, saved)
    lanes: int | str = settings.stream.lanes
    if saved is not None and saved["lanes"]:
        lanes = begun_with = int(saved["lanes"])
        if begun_with < world.size:
            raise RefusedError(
                f"{settings.output}: this run was begun with {lanes} lanes, and a rank needs one "
                f"at least; at most {lanes} ranks can go on with it, there are {world.size}"
            )
    return ShardFeed(settings, dataset, world, lanes)


def make_order(settings: Settings, dataset: Manifest, lanes: int | str, world_size: int) -> Order:
    """The order of the training split.

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
    """Drawings from our own shards: exactly once, resumed at any step."""

    def __init__(
        self, settings: Settings, dataset: Manifest, world: World, lanes: int | str
    ) -> None:
        """`lanes` are the setting, or those that the run was begun with.

        Raises:
            RefusedError: the settings do not fit together, or into memory.
        """
        stream = settings.stream
        self._settings, self.dataset, self._world = settings, dataset, world
        self.order = make_order(settings, dataset, lanes, world.size)
        self.drawings, self.steps = self.order.drawings, self.order.steps
        self.lanes = self.order.lanes
        self.part = rank_part(self.order.global_batch, world.rank, world.size)
        self._threads = stream.threads or processor_share(world.local_size)
        self._validation: SplitReader | None = None
        self._loader = self._resident() if stream.resident else self._streamed()

    def _reader(self, split: str, shards_at_once: int) -> SplitReader:
        settings = self._settings
        return SplitReader(settings.data, self.dataset, split, settings.stream, shards_at_once)

    def _streamed(self) -> TrainLoader:
        world = self._world
        lanes = len(self.order.segments(0, *self.part))
        node_lanes = lanes * world.local_size
        reader = self._reader("train", node_lanes)
        shard_bytes = reader.largest_shard_bytes if reader.cache is not None else 0
        memory, ahead = self._memory(shard_bytes), None
        if (cache := reader.cache) is not None:
            in_use = min(node_lanes, len(reader.shards))
            room = self._settings.stream.cache_bytes // shard_bytes - in_use
            more = min(lanes, room // world.local_size)
            ahead = partial(ShardsAhead, reader, cache, fetchers=memory.fetchers, ahead=more)
        return TrainLoader(
            reader.piece,
            self.order,
            self.part,
            memory,
            pin=world.device.type == "cuda",
            ahead=ahead,
        )

    def _resident(self) -> HostLoader | DeviceLoader:
        world = self._world
        held = ResidentDrawings(
            self._reader("train", world.local_size),
            self.order,
            self.part,
            self._memory(shard_bytes=0),
            local_world_size=world.local_size,
            device=world.device,
        )
        if world.device.type == "cpu":
            return HostLoader(held)
        return DeviceLoader(held)

    def _memory(self, shard_bytes: int) -> LoaderMemory:
        return plan_memory(
            self.order,
            *self.part,
            memory_bytes=self._settings.stream.memory_bytes,
            threads=self._threads,
            shard_bytes=shard_bytes,
            pin=self._world.device.type == "cuda",
        )

    def describe(self, first_step: int) -> list[str]:
        """Lines for whoever starts a run."""
        return [
            f"{self.drawings:,} drawings; an epoch is {self.steps:,} steps of "
            f"{self.order.global_batch:,} and leaves out {self.order.left_out:,}, other ones each "
            "time"
        ]

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Batches from `first_step` to the end of an epoch."""
        return self._loader.epoch(epoch, first_step)

    def validation(self) -> Iterator[Batch]:
        """This rank's contiguous share of the validation split, every drawing once."""
        if self._validation is None:  # kept: what it found out about its cache holds
            self._validation = self._reader("val", self._world.local_size)
        return evaluation_batches(
            self._validation,
            rank=self._world.rank,
            world_size=self._world.size,
            batch=self._settings.evaluation.batch,
            threads=self._threads,
        )
