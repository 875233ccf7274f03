"""The contents of manifest.json and of the part files that it is merged from."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_serializer,
)

from quickdraw_dist.base.settings import Shard
from quickdraw_dist.data.drawings.strokes.tiles import TilesPerDrawing
from quickdraw_dist.data.drawings.strokes.totals import Totals
from quickdraw_dist.data.shards.plan import SPLITS, stored_settings

FORMAT_VERSIONS = {"bitmaps": 1, "strokes": 2}
"""Of the manifest of either content. A release that knows bitmaps only names the version that it
does not read, where it would otherwise find fields that it does not know."""

Count = Annotated[int, Field(ge=0)]


class BlockEntry(NamedTuple):
    """Bytes and drawings of one block of a shard."""

    offset: Count  # bytes from the start of the shard
    size: Count  # bytes
    drawings: Count
    crc32c: Count  # of the contents, blocks.Block.crc


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _without_zeros(fields: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return a file's or shard's fields without these where they are 0: releases that do not know
    them read the manifest."""
    return {name: value for name, value in fields.items() if name not in names or value}


class ShardEntry(_Stored):
    """Name, size and blocks of one shard."""

    name: str
    group: Count
    drawings: Count
    bytes: Count
    crc32c: Count
    blocks: tuple[BlockEntry, ...]
    strokes: Count = 0
    points: Count = 0
    tiles: Count = 0
    tile_squares: Count = 0
    """`Totals` of the drawings; all 0 for bitmaps."""

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_zeros(handler(self), Totals._fields)

    @property
    def totals(self) -> Totals:
        """Numbers of strokes, points and tiles of the drawings."""
        return Totals(self.strokes, self.points, self.tiles, self.tile_squares)


class RangeRead(_Stored):
    """Size, checksum and blank drawings of the range that a group read of one class's file."""

    bytes: Count
    crc32c: Count
    blank: Count = 0

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_zeros(handler(self), ("blank",))


class PartFile(_Stored):
    """A group's part file, under `parts/`: shards and counts that the merge puts together."""

    fingerprint: str
    group: Count
    shards: dict[str, tuple[ShardEntry, ...]]
    per_class: dict[str, tuple[Count, ...]]
    pixel_sum: Count
    pixel_square_sum: Count
    ranges: tuple[RangeRead, ...]


class SourceFile(_Stored):
    """One class's file of the source; bytes and checksum include the header."""

    name: str
    drawings: Count
    bytes: Count
    crc32c: Count
    checked: tuple[str, ...] = ()
    """The `integrity.CHECKS` that the file passed."""
    blank: Count = 0
    """Drawings without ink; datasets made before they were counted have 0."""

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_zeros(handler(self), ("blank",))


class Manifest(_Stored):
    """A dataset: its source, settings, shards and statistics. Labels are indices into `classes`."""

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
            raise ValueError(f"has splits {sorted(value)}, not {', '.join(SPLITS)}")
        return value

    @field_serializer("settings")
    def _settings(self, settings: Shard) -> dict[str, Any]:
        """Return the settings that the shards follow from, as releases that do not know the newer
        ones read them."""
        return stored_settings(settings)

    @property
    def content(self) -> str:
        """What drawings are stored as: "bitmaps" or "strokes"."""
        return self.settings.content

    def drawings(self, split: str) -> int:
        """Return the number of drawings of a split."""
        return sum(shard.drawings for shard in self.splits[split])

    def totals(self, split: str) -> Totals:
        """Return the numbers of strokes, points and tiles of a split; zeros for bitmaps."""
        return Totals.add(shard.totals for shard in self.splits[split])

    @property
    def tiles_per_drawing(self) -> TilesPerDrawing | None:
        """Tiles per drawing of the training split; None for bitmaps."""
        if self.settings.content == "bitmaps":
            return None
        totals, drawings = self.totals("train"), self.drawings("train")
        return TilesPerDrawing.of_sums(totals.tiles, totals.tile_squares, drawings)

    @property
    def contents_digest(self) -> str:
        """The digest computed from the classes and blocks listed here."""
        return digest(self.classes, self.splits)

    @property
    def copy_id(self) -> str:
        """SHA-256 of this copy's bytes: a recompressed copy has the same digest, other bytes."""
        crcs = [shard.crc32c for split in SPLITS for shard in self.splits[split]]
        return hashlib.sha256(json.dumps([self.digest, crcs]).encode()).hexdigest()

    def block_counts(self, split: str) -> tuple[tuple[int, ...], ...]:
        """Return, for every shard of a split, the number of drawings of each block."""
        return tuple(tuple(b.drawings for b in shard.blocks) for shard in self.splits[split])


def digest(classes: tuple[str, ...], splits: dict[str, tuple[ShardEntry, ...]]) -> str:
    """Return the SHA-256 of the contents: classes, and drawings, labels and rows of every block.

    Compression, offsets and addresses do not count: a recompressed copy is the same dataset.
    """
    blocks = {
        split: [[(b.drawings, b.crc32c) for b in shard.blocks] for shard in splits[split]]
        for split in SPLITS
    }
    return hashlib.sha256(json.dumps([classes, blocks]).encode()).hexdigest()
