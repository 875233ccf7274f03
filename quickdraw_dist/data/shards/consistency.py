"""Check a manifest against itself: what it says twice, or what follows from it, must agree."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.data.drawings.strokes.tiles import TILE
from quickdraw_dist.data.drawings.strokes.totals import Totals
from quickdraw_dist.data.shards.members import END_OF_TAR
from quickdraw_dist.data.shards.plan import SPLITS, Plan, shard_name
from quickdraw_dist.data.shards.schema import FORMAT_VERSIONS, Manifest, ShardEntry

_LEAST_BYTES = 8
"""Of a drawing in its source: synthetic strokes, which have no file, count as 8; a `.bin` file has
17 or more."""


def find_contradictions(dataset: Manifest) -> Iterator[str]:
    """Yield a line for everything in a manifest that contradicts the rest of it, without reading a
    shard: classes, counts, names and sizes of shards, pixel statistics, digest.

    A mean or deviation that is merely plausible, and the settings beyond the fractions, can be
    compared with the shards only: jobs.verify does.
    """
    yield from _find_wrong_classes(dataset)
    yield from _find_wrong_counts(dataset)
    content = dataset.settings.content
    if dataset.format_version != FORMAT_VERSIONS[content]:
        yield f"format_version {dataset.format_version}, settings.content {content}"
    for split in SPLITS:
        yield from _find_wrong_shards(split, dataset.splits[split])
        yield from _find_wrong_totals(content, dataset.splits[split])
    mean, std = dataset.pixel_mean, dataset.pixel_std
    if not 0 < std**2 <= mean * (1 - mean) * (1 + 1e-9):
        yield f"pixel_mean {mean:g} and pixel_std {std:g} are not those of drawings"
    if dataset.digest != dataset.contents_digest:
        yield (
            f"digest {dataset.digest[:16]}, but its classes and blocks have "
            f"{dataset.contents_digest[:16]}"
        )


def _find_wrong_classes(dataset: Manifest) -> Iterator[str]:
    files = tuple(file.name for file in dataset.source_files)
    chosen = dataset.settings.classes
    for field, names in (("source_files", files), ("settings.classes", chosen or files)):
        pairs = itertools.zip_longest(dataset.classes, names)
        different = [(label, *pair) for label, pair in enumerate(pairs) if pair[0] != pair[1]]
        if different:
            label, own, other = different[0]
            yield f"classes has {_name(own)} as label {label}, {field} has {_name(other)}"
            return


def _name(name: str | None) -> str:
    return "nothing" if name is None else repr(name)


def _find_wrong_counts(dataset: Manifest) -> Iterator[str]:
    """Yield counts per class that are not what the counts of the source and the fractions make."""
    counts = tuple(file.drawings for file in dataset.source_files)
    names = tuple(file.name for file in dataset.source_files)
    try:
        plan = Plan(names, counts, dataset.settings)
    except RefusedError as error:
        yield str(error)
        return
    for file in dataset.source_files:
        if file.bytes < file.drawings * _LEAST_BYTES:
            yield f"source_files: {file.name!r}: {file.bytes:,} bytes, {file.drawings:,} drawings"
    for split in SPLITS:
        stored = dataset.per_class[split]
        expected = tuple(plan.split_counts(label)[split] for label in range(len(names)))
        for name, count, right in itertools.zip_longest(names, stored, expected):
            if count != right:
                yield f"per_class.{split}: {count} of {_name(name)}, its source file makes {right}"
                break
        if sum(stored) != dataset.drawings(split):
            yield (
                f"per_class.{split}: {sum(stored):,} drawings, its {len(dataset.splits[split]):,} "
                f"shards hold {dataset.drawings(split):,}"
            )


def _find_wrong_shards(split: str, shards: tuple[ShardEntry, ...]) -> Iterator[str]:
    for number, shard in enumerate(shards):
        if shard.name != shard_name(split, number):
            yield f"splits.{split}: {shard.name} is where {shard_name(split, number)} belongs"
            return
        drawings = sum(block.drawings for block in shard.blocks)
        if drawings != shard.drawings:
            yield f"{shard.name}: {shard.drawings:,} drawings, its blocks hold {drawings:,}"
        end = 0
        for block in shard.blocks:
            end = block.offset + block.size if block.offset == end else -1
        if end + len(END_OF_TAR) != shard.bytes:
            yield f"{shard.name}: its blocks do not fill its {shard.bytes:,} bytes"


def _find_wrong_totals(content: str, shards: tuple[ShardEntry, ...]) -> Iterator[str]:
    """Yield shards whose numbers of strokes, points and tiles no drawings have."""
    for shard in shards:
        strokes, points, tiles, squares = shard.totals
        segments, drawings = points - strokes, shard.drawings
        possible = (
            strokes <= segments  # a stroke has a segment or more
            and segments <= tiles * TILE
            and tiles <= segments
            and tiles * TILE < segments + drawings * TILE
            and tiles**2 <= squares * drawings
            and tiles <= squares <= tiles**2
        )
        if shard.totals != Totals() if content == "bitmaps" else not possible:
            yield (
                f"{shard.name}: {strokes:,} strokes, {points:,} points, {tiles:,} tiles and "
                f"{squares:,} tile_squares are not those of {drawings:,} {content}"
            )
