"""What a dataset holds: `manifest.json`, published last, so that without it nothing is there."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from quickdraw_dist import storage
from quickdraw_dist.config import Shard
from quickdraw_dist.drawings import PIXELS
from quickdraw_dist.errors import RefusedError
from quickdraw_dist.shards.plan import SPLITS, Plan

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


def merge(plan: Plan, parts: list[Part], source: str, headers: tuple[bytes, ...]) -> Manifest:
    """The manifest of a plan whose every group is done; pure, the same whoever merges."""
    splits = {
        split: tuple(shard for part in parts for shard in part.shards[split]) for split in SPLITS
    }
    per_class = {
        split: tuple(
            int(n) for n in np.sum([part.per_class[split] for part in parts], axis=0, dtype=int)
        )
        for split in SPLITS
    }
    files = []
    for label, (name, count) in enumerate(zip(plan.classes, plan.counts, strict=True)):
        header = headers[label]
        crc, length = storage.crc32c(header), len(header)
        for part in parts:
            piece = part.ranges[label]
            crc = combine_crc32c(crc, piece.crc32c, piece.bytes)
            length += piece.bytes
        files.append(SourceFile(name=name, drawings=count, bytes=length, crc32c=crc))
    mean, std = normalisation(
        sum(part.pixel_sum for part in parts),
        sum(part.pixel_square_sum for part in parts),
        sum(per_class["train"]),
    )
    return Manifest(
        format_version=FORMAT_VERSION,
        classes=plan.classes,
        source=source,
        source_files=tuple(files),
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


def combine_crc32c(first: int, second: int, second_bytes: int) -> int:
    """CRC-32C of a concatenation from those of its two parts and the length of the second.

    Appending n zero bytes to a message is a linear map of its CRC over GF(2); squaring the map
    for one zero byte gives those for 2, 4, 8 ... (the method of zlib's crc32_combine).
    """
    for bit, columns in enumerate(_zero_bytes_maps()):
        if second_bytes >> bit & 1:
            first = _apply(columns, first)
    return first ^ second


@cache
def _zero_bytes_maps() -> tuple[list[int], ...]:
    """The maps of 1, 2, 4 ... 2^47 zero bytes, each as the images of the 32 bits."""
    # That of one zero bit: shift right, and fold a one that falls out into the polynomial.
    columns = [0x82F63B78] + [1 << n for n in range(31)]
    for _ in range(3):
        columns = [_apply(columns, column) for column in columns]
    maps = [columns]
    for _ in range(47):
        maps.append([_apply(maps[-1], column) for column in maps[-1]])
    return tuple(maps)


def _apply(columns: list[int], vector: int) -> int:
    result = 0
    for column in columns:
        if vector & 1:
            result ^= column
        vector >>= 1
        if not vector:
            break
    return result


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
        raise RefusedError(f"{url}: not a manifest: {error}. {remedy}") from None


def _has_parts(folder: str) -> bool:
    try:
        return bool(storage.sizes(storage.join(folder, "parts"), ".json"))
    except (FileNotFoundError, NotADirectoryError):
        return False


def to_json(stored: Manifest | Part) -> bytes:
    """The bytes to publish."""
    return (stored.model_dump_json() + "\n").encode()
