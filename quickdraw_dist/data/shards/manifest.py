"""What a dataset holds: `manifest.json`, published last, so that without it nothing is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError, one_line
from quickdraw_dist.base.settings import Shard
from quickdraw_dist.data.drawings.drawing import PIXELS
from quickdraw_dist.data.shards.plan import SPLITS, Plan

FORMAT_VERSION = 1
NAME = "manifest.json"

Count = Annotated[int, Field(ge=0)]


class BlockEntry(NamedTuple):
    """One block of a shard."""

    offset: Count  # bytes from the start of the shard
    size: Count  # bytes
    drawings: Count
    crc32c: Count  # over the contents, blocks.Block.crc


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardEntry(_Stored):
    """One shard."""

    name: str
    group: Count
    drawings: Count
    bytes: Count
    crc32c: Count
    blocks: tuple[BlockEntry, ...]


class RangeRead(_Stored):
    """What a group read of one class's file."""

    bytes: Count
    crc32c: Count


class Part(_Stored):
    """What one group became: a file of its own under `parts/` until the manifest is merged."""

    fingerprint: str
    group: Count
    shards: dict[str, tuple[ShardEntry, ...]]
    per_class: dict[str, tuple[Count, ...]]
    pixel_sum: Count
    pixel_square_sum: Count
    ranges: tuple[RangeRead, ...]


class SourceFile(_Stored):
    """One class of the source: with its header, the checksum of the whole file."""

    name: str
    drawings: Count
    bytes: Count
    crc32c: Count
    checked: tuple[str, ...] = ()
    """What the file was compared with, of `integrity.CHECKS`."""


class Manifest(_Stored):
    """The dataset. Labels are indices into `classes`."""

    format_version: int
    classes: tuple[str, ...]
    source: str
    source_files: tuple[SourceFile, ...]
    settings: Shard
    splits: dict[str, tuple[ShardEntry, ...]]
    per_class: dict[str, tuple[Count, ...]]
    pixel_mean: float
    pixel_std: float
    digest: str

    @field_validator("splits", "per_class")
    @classmethod
    def _all_splits(cls, value: dict[str, Any]) -> dict[str, Any]:
        if set(value) != set(SPLITS):
            raise ValueError(f"has splits {sorted(value)}, {', '.join(SPLITS)} is right")
        return value

    def drawings(self, split: str) -> int:
        """Drawings of a split."""
        return sum(shard.drawings for shard in self.splits[split])

    @property
    def copy_id(self) -> str:
        """Names the bytes of this copy: a recompressed one has the same digest, but other bytes."""
        crcs = [shard.crc32c for split in SPLITS for shard in self.splits[split]]
        return hashlib.sha256(json.dumps([self.digest, crcs]).encode()).hexdigest()

    def block_counts(self, split: str) -> tuple[tuple[int, ...], ...]:
        """For every shard of a split, the drawings of each of its blocks."""
        return tuple(tuple(b.drawings for b in shard.blocks) for shard in self.splits[split])


def part_name(group: int) -> str:
    """The path of a group's part file below the dataset's folder."""
    return f"parts/group-{group:06d}.json"


def shards_of(parts: Mapping[int, Part]) -> dict[str, tuple[ShardEntry, ...]]:
    """The shards of each split, in order, of the parts of all groups."""
    in_order = [parts[group] for group in sorted(parts)]
    return {
        split: tuple(shard for part in in_order for shard in part.shards[split]) for split in SPLITS
    }


def merge(
    plan: Plan, parts: Mapping[int, Part], source: str, source_files: tuple[SourceFile, ...]
) -> Manifest:
    """The manifest of a plan whose every group is done; pure, the same whoever merges."""
    splits = shards_of(parts)
    counts = {split: [part.per_class[split] for part in parts.values()] for split in SPLITS}
    per_class = {split: tuple(np.sum(counts[split], axis=0).tolist()) for split in SPLITS}
    mean, std = normalisation(
        sum(part.pixel_sum for part in parts.values()),
        sum(part.pixel_square_sum for part in parts.values()),
        sum(per_class["train"]),
    )
    return Manifest(
        format_version=FORMAT_VERSION,
        classes=plan.classes,
        source=source,
        source_files=source_files,
        settings=plan.settings,
        splits=splits,
        per_class=per_class,
        pixel_mean=mean,
        pixel_std=std,
        digest=digest(plan.classes, splits),
    )


def normalisation(pixel_sum: int, pixel_square_sum: int, drawings: int) -> tuple[float, float]:
    """Mean and standard deviation of the train split's pixels on a scale of 0 to 1."""
    pixels = max(drawings, 1) * PIXELS
    mean = pixel_sum / pixels
    return mean / 255, (pixel_square_sum / pixels - mean**2) ** 0.5 / 255


def digest(classes: tuple[str, ...], splits: dict[str, tuple[ShardEntry, ...]]) -> str:
    """Names the contents: classes, and every block's drawings, labels and rows in order.

    Compression, offsets and addresses do not enter: a recompressed copy is the same dataset.
    """
    blocks = {
        split: [[(b.drawings, b.crc32c) for b in shard.blocks] for shard in splits[split]]
        for split in SPLITS
    }
    return hashlib.sha256(json.dumps([classes, blocks]).encode()).hexdigest()


def read(folder: str) -> Manifest:
    """The manifest of a dataset.

    Raises:
        RefusedError: no dataset there, one of a newer format, or a damaged manifest.
    """
    url = storage.join(folder, NAME)
    remedy = f"Make one with: make shard DEST={folder}"
    try:
        text = storage.read(url)
    except (FileNotFoundError, NotADirectoryError):
        what = "sharding has not finished" if _has_parts(folder) else "no dataset there"
        raise RefusedError(f"{folder}: {what} (no {NAME}). {remedy}") from None
    try:
        version = json.loads(text)["format_version"]
        if version != FORMAT_VERSION:
            raise RefusedError(
                f"{url}: format version {version}; this release reads version {FORMAT_VERSION}. "
                "Update quickdraw-dist, or shard again"
            )
        return Manifest.model_validate_json(text)
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"{url}: not a manifest: {one_line(error)}. {remedy}") from None


def _has_parts(folder: str) -> bool:
    try:
        return bool(storage.sizes(storage.join(folder, "parts"), ".json"))
    except (FileNotFoundError, NotADirectoryError):
        return False


def to_json(stored: Manifest | Part) -> bytes:
    """The bytes to publish."""
    return (stored.model_dump_json() + "\n").encode()
