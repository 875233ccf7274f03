"""WebDataset tars that we did not write: which shards there are, and what is measured of them.

Without a manifest nothing says how many drawings there are or what is in them. So the dataset is
known by the names and sizes of its shards, its drawings are counted once, and the pixels' mean
and spread are those of a sample.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from webdataset.shardlists import expand_urls

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.data.drawings.classes import official_names
from quickdraw_dist.data.external.samples import decode, read_labels, read_samples
from quickdraw_dist.data.shards.manifest import normalisation, stored_sizes
from quickdraw_dist.distributed import ranks as distributed
from quickdraw_dist.distributed.ranks import World

_SAMPLED_SHARDS, _SAMPLED_DRAWINGS = 8, 8_192
"""The pixels' mean and spread are those of so many drawings, of so many shards."""

_RIGHT = (
    "a folder of .tar files, one with such folders train/ and val/, or a pattern such as "
    "'data/x-{000..012}.tar' or 'gs://bucket/x-*.tar' is right"
)


class ExternalShard(NamedTuple):
    """One tar."""

    url: str
    bytes: int


@dataclass(frozen=True)
class ExternalShards:
    """A dataset of which only the shards are known."""

    classes: tuple[str, ...]
    train: tuple[ExternalShard, ...]
    val: tuple[ExternalShard, ...]  # empty: there is no validation split

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the sorted names and sizes of the training shards, not their contents: a
        copy elsewhere is the same dataset, and so is another one with the same names and sizes."""
        named = sorted((shard.url.rpartition("/")[2], shard.bytes) for shard in self.train)
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()


@dataclass(frozen=True)
class ExternalInfo:
    """The same dataset, measured."""

    classes: tuple[str, ...]
    digest: str
    pixel_mean: float
    pixel_std: float


def open_shards(settings: Settings) -> ExternalShards:
    """List the shards that the settings name; none is read.

    Raises:
        RefusedError: there are none, or it is not clear which are meant.
        StorageError: the store failed.
    """
    stream = settings.stream
    train, val = find_splits(settings.data)
    if not train:
        raise RefusedError(f"--data {settings.data}: no .tar file there to train on; {_RIGHT}")
    if stream.validation_data and not (val := find_shards(stream.validation_data)):
        raise RefusedError(
            f"--stream.validation_data {stream.validation_data}: no .tar file there; {_RIGHT}"
        )
    return ExternalShards(stream.class_names or official_names(), train, val)


def find_splits(data: str) -> tuple[tuple[ExternalShard, ...], tuple[ExternalShard, ...]]:
    """Shards for training and for validation below an address; either may be empty.

    Raises:
        RefusedError: the address is malformed, or has both tars and a folder train/.
    """
    shards = find_shards(data)
    if data.endswith(".tar") or "train" not in storage.folders(data):
        return shards, ()
    if shards:
        raise RefusedError(
            f"--data {data}: holds .tar files and a folder train/; {storage.join(data, 'train')} "
            f"or '{storage.join(data, '*.tar')}' is right"
        )
    return find_shards(storage.join(data, "train")), find_shards(storage.join(data, "val"))


def find_shards(pattern: str) -> tuple[ExternalShard, ...]:
    """The tars that a pattern names, sorted by address; none where there are none.

    Args:
        pattern: webdataset's own ('x-{000..012}.tar', several with '::' in between); the last
            part of each address may have wildcards (* ? []), or be a folder: all tars in it.

    Raises:
        RefusedError: malformed, or one of several tars is missing.
    """
    try:
        urls = expand_urls(pattern)
    except (ValueError, AssertionError) as error:
        raise RefusedError(f"{pattern}: {error}; {_RIGHT}") from None
    listings: dict[str, dict[str, int]] = {}
    found: dict[str, int] = {}
    missing = []
    for url in urls:
        folder, name = _split(url) if url.endswith(".tar") else (url, "*.tar")
        if folder not in listings:
            listings[folder] = _tars(folder)
        names = [name] if name in listings[folder] else fnmatch.filter(listings[folder], name)
        if not names:
            missing.append(url)
        found |= {storage.join(folder, name): listings[folder][name] for name in names}
    if found and missing:
        raise RefusedError(
            f"{pattern}: {len(missing)} of {len(urls)} are not there, such as {missing[0]}; "
            "a pattern of those that are is right"
        )
    return tuple(ExternalShard(url, found[url]) for url in sorted(found))


def _split(url: str) -> tuple[str, str]:
    """Folder and name."""
    if storage.is_remote(url):
        folder, _, name = url.rpartition("/")
        return folder, name
    return str(Path(url).parent), Path(url).name


def _tars(folder: str) -> dict[str, int]:
    found = stored_sizes(folder, ".tar")
    return {name: size for name, size in found.items() if not name.startswith(".")}


def check_fit(settings: Settings, shards: ExternalShards, world_size: int) -> None:
    """Whether so many ranks can train on it with these settings.

    Raises:
        RefusedError: naming the setting, its value and what would be right.
    """
    batch, stream = settings.train.global_batch, settings.stream
    if stream.resident:
        raise RefusedError(
            "--stream.resident true: with --stream.reader webdataset no rank knows beforehand "
            "which drawings are its own; --stream.resident false is right"
        )
    if (count := len(shards.train)) < world_size:
        raise RefusedError(
            f"--data {settings.data}: {count:,} shards, fewer than the {world_size:,} ranks, and "
            f"every rank reads shards of its own; {count:,} ranks at most, or the drawings in "
            f"{world_size:,} shards or more, are right"
        )
    if batch < world_size:
        raise RefusedError(
            f"--train.global_batch {batch}: smaller than the {world_size} ranks, some would have "
            f"no drawing; --train.global_batch {world_size} or more is right"
        )
    if 0 < stream.epoch_drawings < batch:
        raise RefusedError(
            f"--stream.epoch_drawings {stream.epoch_drawings}: less than one --train.global_batch "
            f"of {batch:,}; that many or more, or a smaller batch, is right"
        )


def count_drawings(shards: ExternalShards, world: World) -> int:
    """Drawings of the training shards, all read once to know; every label is checked on the way.

    The ranks take turns shard by shard and add up after each turn, so that none waits for another
    longer than for one shard.

    Raises:
        CorruptError: a sample cannot be used; names it.
        StorageError: the store failed.
    """
    total, classes = 0, len(shards.classes)
    with tqdm(
        total=len(shards.train), unit=" shards", desc="counting drawings",
        disable=None if world.is_first else True, leave=False,
    ) as bar:  # fmt: skip
        for first in range(0, len(shards.train), world.size):
            turn = shards.train[first : first + world.size]
            urls = [shard.url for shard in turn[world.rank : world.rank + 1]]
            counted = sum(len(read_labels(sample, classes)) for sample in read_samples(urls))
            total += _sum(counted, world)
            bar.set_postfix_str(f"{total:,} drawings")
            bar.update(len(turn))
    return total


def _sum(count: int, world: World) -> int:
    box = torch.tensor([count], dtype=torch.int64, device=world.device)
    return int(distributed.sum_over_ranks(box).item())


def estimate_normalisation(shards: ExternalShards) -> tuple[float, float]:
    """Mean and standard deviation of some training drawings' pixels, on a scale of 0 to 1."""
    chosen = shards.train[:: -(-len(shards.train) // _SAMPLED_SHARDS)]
    each = _SAMPLED_DRAWINGS // len(chosen)
    sums, drawings = np.zeros(2, np.int64), 0
    for shard in chosen:
        here = 0
        for sample in read_samples([shard.url]):
            block = decode(sample, len(shards.classes))
            sums += block.pixel_sums()
            here += len(block.labels)
            if here >= each:
                break
        drawings += here
    return normalisation(int(sums[0]), int(sums[1]), drawings)
