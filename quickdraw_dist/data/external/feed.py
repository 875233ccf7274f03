"""Deliver batches of external drawings, the same number of steps on every rank.

Rank r of n reads shards r, r + n, r + 2n and so on, pass after pass, until the steps of an epoch
are done. Shards differ in length, so a drawing may come twice in an epoch, or not at all.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import webdataset

from quickdraw_dist.base.errors import RefusedError, flag
from quickdraw_dist.base.hashing import key64
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.base.storage import is_remote
from quickdraw_dist.data.external.shards import (
    ExternalInfo,
    ExternalShards,
    count_drawings,
    estimate_normalisation,
)
from quickdraw_dist.data.external.shuffle import (
    DRAWING_BYTES,
    Drawing,
    read_drawings,
    shuffled_passes,
)
from quickdraw_dist.data.order.content_bytes import BitmapBytes
from quickdraw_dist.data.order.memory import PREFETCHED_BATCHES
from quickdraw_dist.data.order.share import Share
from quickdraw_dist.data.stream.batch import Batch, StrokeBatch, allocate, noise
from quickdraw_dist.distributed import ranks
from quickdraw_dist.distributed.ranks import World

_FIRST_BATCHES = 8
"""Batches in the shuffle buffer before the first drawing of a pass is delivered."""


class ExternalFeed:
    """A rank's batches from any WebDataset, read with the webdataset package."""

    lanes = 0  # none: drawings have no fixed order

    def __init__(
        self,
        settings: Settings,
        shards: ExternalShards,
        world: World,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        """Count the drawings and estimate the normalisation, or take both from a checkpoint.

        Args:
            settings: of the run.
            shards: as this rank listed them; the first rank's listing is used by all.
            world: the ranks.
            saved: meta of the checkpoint that is resumed, if any.

        Raises:
            CorruptError: a sample that cannot be trained on.
            RefusedError: too few drawings or too little memory for a batch.
            StorageError, OSError: a shard could not be read.
        """
        self._settings, self._world = settings, world
        # A listing that changes while a job starts must be the same on all ranks.
        self._shards = ranks.from_first_rank(lambda: shards)
        global_batch = settings.train.global_batch
        self.share = Share.of_rank(global_batch, world.rank, world.size)
        self._pin = world.device.type == "cuda"
        self._capacity = self._buffer_capacity()
        self.drawings = settings.stream.epoch_drawings or self._count(saved)
        self.steps = self.drawings // global_batch
        if not self.steps:
            problem = f"{settings.data} has only {self.drawings:,} drawings"
            remedy = f"Use {flag('train.global_batch', self.drawings)} at most"
            raise RefusedError("--train.global_batch", global_batch, problem, remedy)
        mean, std = self._normalisation(saved)
        self.dataset = ExternalInfo(shards.classes, self._shards.digest, mean, std)

    def _count(self, saved: Mapping[str, Any] | None) -> int:
        """Return the drawings of all shards; a run that resumes does not count them again."""
        if saved is None or saved["dataset_digest"] != self._shards.digest:
            return count_drawings(self._shards, self._world)
        if saved["config"]["stream"]["epoch_drawings"]:  # then that run did not count them
            return count_drawings(self._shards, self._world)
        return int(saved["epoch_drawings"])

    def _normalisation(self, saved: Mapping[str, Any] | None) -> tuple[float, float]:
        """Return the checkpoint's normalisation if there is one: another estimate would shift the
        network's inputs."""
        if saved is not None:
            return saved["normalisation"]["mean"], saved["normalisation"]["std"]
        return ranks.from_first_rank(lambda: estimate_normalisation(self._shards))

    def _buffer_capacity(self) -> int:
        """Return the capacity of the shuffle buffer: what batches and a remote shard leave."""
        memory_bytes, shards = self._settings.stream.memory_bytes, self._shards.train
        count = self.share.drawings
        # One more batch, as a list of drawings.
        taken = PREFETCHED_BATCHES * BitmapBytes().batch(count, self._pin) + count * DRAWING_BYTES
        taken += max(shard.bytes for shard in shards) if is_remote(shards[0].url) else 0
        if (needed := taken + count * DRAWING_BYTES) > memory_bytes:
            raise RefusedError(
                "--stream.memory_bytes",
                memory_bytes,
                f"{PREFETCHED_BATCHES} batches of {count:,} drawings, two more in the shuffle "
                f"buffer, and the largest shard of a remote dataset take {needed:,} bytes",
                f"Use {flag('stream.memory_bytes', needed)} or more; more memory shuffles better",
                needed_bytes=needed,
            )
        return (memory_bytes - taken) // DRAWING_BYTES

    def noise(self) -> torch.Tensor | StrokeBatch:
        """Return drawings of noise, as many as `share`."""
        return noise(self.share.drawings, None)

    def start_lines(self, first_step: int) -> list[str]:
        """Return lines to print when a run starts at this step of an epoch."""
        stream, shards = self._settings.stream, self._shards
        why = "as --stream.epoch_drawings says" if stream.epoch_drawings else "all, as counted"
        lines = [
            f"an epoch is {self.drawings:,} drawings ({why}) of {len(shards.train):,} shards, "
            f"{self.steps:,} steps of {self._settings.train.global_batch:,}; the shuffle buffer of "
            f"a rank holds up to {self._capacity:,} drawings (--stream.memory_bytes)",
            f"read with webdataset {webdataset.__version__}, which does not promise that a "
            "drawing comes exactly once per epoch, nor to resume in mid-epoch where it stopped; "
            "the dataset is identified by its shards' names and sizes only",
        ]
        if not shards.val:
            lines.append("no validation split (--stream.validation_data): nothing is measured")
        if first_step:
            lines.append(
                f"the {self.steps - first_step:,} steps left in this epoch are shuffled again: "
                "some drawings come a second time in it, others not at all"
            )
        return lines

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """Yield the batches from `first_step` to the end of an epoch, prefetched by a thread.

        The sequence follows from seed, epoch, first step and rank, for the same shards, world
        size, batch, memory and version of webdataset.

        Raises:
            CorruptError, StorageError, OSError: from the sample or shard that could not be read.
        """
        return _prefetch(self._batches(epoch, first_step))

    def _batches(self, epoch: int, first_step: int) -> Generator[Batch, None, None]:
        train, world = self._settings.train, self._world
        count = self.share.drawings
        urls = [shard.url for shard in self._shards.train[world.rank :: world.size]]
        key = key64(train.seed, "webdataset", epoch, first_step, world.rank)
        initial, classes = _FIRST_BATCHES * count, len(self._shards.classes)
        drawings = shuffled_passes(urls, classes, initial, self._capacity, key)
        batches = _batched(drawings, count)
        for step in range(first_step, self.steps):
            yield _make_batch(step, next(batches), self._pin)

    def validation(self) -> Iterator[Batch] | None:
        """Yield this rank's shards of the validation split, every drawing once; None without a
        split."""
        if not self._shards.val:
            return None
        urls = [shard.url for shard in self._shards.val[self._world.rank :: self._world.size]]
        batch = self._settings.evaluation.batch
        return batches_in_order(urls, len(self._shards.classes), batch, pin=self._pin)


def batches_in_order(
    urls: Sequence[str], classes: int, batch: int, *, pin: bool = False
) -> Iterator[Batch]:
    """Yield every drawing of the shards once, prefetched by a thread into memory that is pinned
    for CUDA if `pin`.

    Raises:
        CorruptError, StorageError, OSError: from the sample or shard that could not be read.
    """
    batches = enumerate(_batched(read_drawings(urls, classes), batch))
    return _prefetch(_make_batch(number, made, pin) for number, made in batches)


def _batched(drawings: Iterator[Drawing], count: int) -> Iterator[list[Drawing]]:
    """Yield lists of `count` drawings; the last one may be shorter."""
    batches: Iterator[list[Drawing]] = webdataset.batched(count, collation_fn=None)(drawings)
    return batches


def _make_batch(step: int, batch: list[Drawing], pin: bool) -> Batch:
    pixels, classes, rows = zip(*batch, strict=True)
    drawings, labels = allocate(len(batch), pin)
    drawings.numpy().reshape(-1)[:] = np.frombuffer(b"".join(pixels), np.uint8)
    labels.numpy()[:] = classes
    return Batch(step, drawings, labels, np.array(rows, np.uint32))


def _prefetch(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """Yield the same batches, made in a thread: one is in use while the others are made."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue()
    slots = threading.Semaphore(PREFETCHED_BATCHES - 1)  # one more is in use
    closing = threading.Event()

    def produce() -> None:
        try:
            with contextlib.closing(batches):
                while slots.acquire() and not closing.is_set():
                    made = next(batches, None)
                    ready.put(made)
                    if made is None:
                        return
        except BaseException as error:
            ready.put(error)

    producer = threading.Thread(target=produce, daemon=True, name="loader")
    producer.start()
    try:
        while (made := ready.get()) is not None:
            if isinstance(made, BaseException):
                raise made
            slots.release()
            yield made
    finally:
        closing.set()
        slots.release()
        producer.join()
