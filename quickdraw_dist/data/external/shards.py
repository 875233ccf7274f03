"""List external WebDataset tars, count their drawings and estimate their normalisation.

External data has no manifest that says how many drawings there are. So the dataset is identified
by the names and sizes of its shards, its drawings are counted once, and mean and standard
deviation of the pixels are estimated from a sample.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from webdataset.shardlists import expand_urls

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError, flag
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.data.drawings.classes import official_names
from quickdraw_dist.data.external.samples import decode, read_labels, read_samples
from quickdraw_dist.data.shards.blocks import pixel_sums
from quickdraw_dist.data.shards.manifest import normalisation, stored_sizes
from quickdraw_dist.distributed import ranks
from quickdraw_dist.distributed.ranks import World

_SAMPLED_SHARDS, _SAMPLED_DRAWINGS = 8, 8_192
"""Mean and standard deviation are estimated from this many drawings of this many shards."""

_REMEDY = (
    "Use a folder of .tar files, one with such folders train/ and val/, or a pattern such as "
    "'data/x-{000..012}.tar' or 'gs://bucket/x-*.tar'"
)


class ExternalShard(NamedTuple):
    """Address and size of one tar."""

    url: str
    bytes: int


@dataclass(frozen=True)
class ExternalShards:
    """Shards and class names of an external dataset; nothing of it has been read."""

    classes: tuple[str, ...]
    train: tuple[ExternalShard, ...]
    val: tuple[ExternalShard, ...]  # empty without a validation split
    content: str = "bitmaps"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the sorted names and sizes of the training shards, not of their contents: a
        copy elsewhere is the same dataset, and so is any with the same names and sizes."""
        named = sorted((shard.url.rpartition("/")[2], shard.bytes) for shard in self.train)
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()


@dataclass(frozen=True)
class ExternalInfo:
    """What a run has to know of an external dataset, once it is measured."""

    classes: tuple[str, ...]
    digest: str
    pixel_mean: float
    pixel_std: float
    content: str = "bitmaps"


def open_shards(settings: Settings) -> ExternalShards:
    """List the shards that the settings name, without reading any.

    Raises:
        RefusedError: there are none, or the settings are ambiguous.
        StorageError: the store failed.
    """
    stream = settings.stream
    train, val = find_splits(settings.data)
    if not train:
        raise RefusedError("--data", settings.data, "no .tar file there to train on", _REMEDY)
    if stream.validation_data and not (val := find_shards(stream.validation_data)):
        raise RefusedError(
            "--stream.validation_data", stream.validation_data, "no .tar file there", _REMEDY
        )
    return ExternalShards(stream.class_names or official_names(), train, val)


def find_splits(data: str) -> tuple[tuple[ExternalShard, ...], tuple[ExternalShard, ...]]:
    """Return the shards for training and for validation below an address; either may be empty.

    Raises:
        RefusedError: the address is malformed, or holds both tars and a folder train/.
    """
    shards = find_shards(data)
    if data.endswith(".tar") or "train" not in storage.folders(data):
        return shards, ()
    if shards:
        remedy = f"Use {storage.join(data, 'train')} or '{storage.join(data, '*.tar')}'"
        raise RefusedError("--data", data, "holds .tar files and a folder train/", remedy)
    return find_shards(storage.join(data, "train")), find_shards(storage.join(data, "val"))


def find_shards(pattern: str) -> tuple[ExternalShard, ...]:
    """Return the tars that match a pattern, sorted by address; empty if there are none.

    Args:
        pattern: as webdataset has them ('x-{000..012}.tar', several joined by '::'); the last
            component of each address may have wildcards (* ? []), or be a folder: all its tars.

    Raises:
        RefusedError: the pattern is malformed, or one of several tars is missing.
    """
    try:
        urls = expand_urls(pattern)
    except (ValueError, AssertionError) as error:
        raise RefusedError(pattern, None, str(error), _REMEDY) from None
    listings: dict[str, dict[str, int]] = {}
    found: dict[str, int] = {}
    missing = []
    for url in urls:
        folder, name = _split(url) if url.lower().endswith(".tar") else (url, "*.tar")
        if folder not in listings:
            listings[folder] = stored_sizes(folder, ".tar")
        names = [name] if name in listings[folder] else _matching(listings[folder], name)
        if not names:
            missing.append(url)
        found |= {storage.join(folder, name): listings[folder][name] for name in names}
    if found and missing:
        problem = f"{len(missing)} of {len(urls)} are not there, such as {missing[0]}"
        remedy = "Use a pattern that names existing shards only"
        raise RefusedError(pattern, None, problem, remedy, missing=tuple(missing))
    return tuple(ExternalShard(url, found[url]) for url in sorted(found))


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    """Return the names that match a pattern in upper or lower case: X.TAR is a tar file, too."""
    return [name for name in names if fnmatch.fnmatchcase(name.lower(), pattern.lower())]


def _split(url: str) -> tuple[str, str]:
    """Return folder and name of an address."""
    if storage.is_remote(url):
        folder, _, name = url.rpartition("/")
        return folder, name
    return str(Path(url).parent), Path(url).name


def check_fit(settings: Settings, shards: ExternalShards, world_size: int) -> None:
    """Check that `world_size` ranks can train on external shards with these settings.

    Raises:
        RefusedError: too few shards or drawings per batch for the ranks, or a setting that
            external data does not support.
    """
    batch, stream = settings.train.global_batch, settings.stream
    if stream.resident:
        problem = "with --stream.reader webdataset no rank knows its drawings beforehand"
        raise RefusedError("--stream.resident", True, problem, "Use --stream.resident false")
    if (count := len(shards.train)) < world_size:
        problem = f"{count:,} shards, fewer than the {world_size:,} ranks that each read their own"
        remedy = f"Use at most {count:,} ranks, or {world_size:,} shards or more"
        raise RefusedError("--data", settings.data, problem, remedy)
    if batch < world_size:
        problem = f"smaller than the {world_size} ranks, some would have no drawing"
        remedy = f"Use {flag('train.global_batch', world_size)} or more"
        raise RefusedError("--train.global_batch", batch, problem, remedy)
    if 0 < stream.epoch_drawings < batch:
        problem = f"less than one batch ({flag('train.global_batch', batch)})"
        remedy = f"Use {flag('stream.epoch_drawings', batch)} or more, or a smaller batch"
        raise RefusedError("--stream.epoch_drawings", stream.epoch_drawings, problem, remedy)


def count_drawings(shards: ExternalShards, world: World) -> int:
    """Read all training shards once to count their drawings; every label is checked.

    Each rank counts one shard, then all add up, and so on: no rank waits for another longer than
    one shard takes.

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
            round_ = shards.train[first : first + world.size]
            urls = [shard.url for shard in round_[world.rank : world.rank + 1]]
            counted = sum(len(read_labels(sample, classes)) for sample in read_samples(urls))
            total += _sum(counted, world)
            bar.set_postfix_str(f"{total:,} drawings")
            bar.update(len(round_))
    return total


def _sum(count: int, world: World) -> int:
    box = torch.tensor([count], dtype=torch.int64, device=world.device)
    return int(ranks.sum_over_ranks(box).item())


def estimate_normalisation(shards: ExternalShards) -> tuple[float, float]:
    """Estimate mean and standard deviation of the training pixels, on a scale of 0 to 1."""
    chosen = shards.train[:: -(-len(shards.train) // _SAMPLED_SHARDS)]
    per_shard = _SAMPLED_DRAWINGS // len(chosen)
    sums, drawings = np.zeros(2, np.int64), 0
    for shard in chosen:
        read = 0
        for sample in read_samples([shard.url]):
            block = decode(sample, len(shards.classes))
            sums += pixel_sums(block.pixels)
            read += len(block.labels)
            if read >= per_shard:
                break
        drawings += read
    return normalisation(int(sums[0]), int(sums[1]), drawings)
