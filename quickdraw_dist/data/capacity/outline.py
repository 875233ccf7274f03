"""The outline of a dataset: shards, blocks and bytes, from its manifest or its plan alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from quickdraw_dist.base.errors import RefusedError, flag, nearest
from quickdraw_dist.base.settings import Shard
from quickdraw_dist.data.drawings.classes import official_class, official_names
from quickdraw_dist.data.drawings.strokes.tiles import TilesPerDrawing
from quickdraw_dist.data.shards.plan import SPLITS, Plan
from quickdraw_dist.data.shards.schema import Manifest

OFFICIAL_TILES = TilesPerDrawing(2.87 * 1.044, 1.41 * 1.044)
"""Tiles per drawing of the official drawings: measured on 182,532 of all 345 classes, with the
points of all 50,426,266 (that many bytes their binary files have), 4.4 % more per drawing."""

Blocks = tuple[tuple[int, ...], ...]
"""For every shard of a split, the drawings of each of its blocks."""


@dataclass(frozen=True)
class Outline:
    """Sizes of a dataset, finished or planned."""

    plan: Plan
    source: str
    blocks: Mapping[str, Blocks]  # by split
    shard_bytes: Mapping[str, tuple[int, ...]]  # by split
    per_drawing: TilesPerDrawing | None = None  # of strokes; None for bitmaps

    def bytes_of(self, split: str, shard: int, drawings: int) -> int:
        """Return about how many bytes of a shard this many of its drawings take."""
        return self.shard_bytes[split][shard] * drawings // sum(self.blocks[split][shard])


def of_manifest(dataset: Manifest) -> Outline:
    """Return the outline of a finished dataset."""
    counts = tuple(file.drawings for file in dataset.source_files)
    return Outline(
        Plan(dataset.classes, counts, dataset.settings),
        dataset.source,
        {split: dataset.block_counts(split) for split in SPLITS},
        {split: tuple(shard.bytes for shard in dataset.splits[split]) for split in SPLITS},
        dataset.tiles_per_drawing,
    )


def of_plan(plan: Plan, source: str) -> Outline:
    """Return the outline that sharding will make of a plan: exact but for the bytes and tiles,
    which are those of as many official drawings."""
    each = plan.estimated_bytes // plan.drawings
    blocks: dict[str, list[tuple[int, ...]]] = {split: [] for split in SPLITS}
    for group in range(plan.groups):
        for place in plan.shards(group):
            of_split = int(plan.split_sizes[group, SPLITS.index(place.split)])
            first, stop = (part * of_split // place.of for part in (place.index, place.index + 1))
            edges = [*range(first, stop, plan.settings.block), stop]
            blocks[place.split].append(tuple(b - a for a, b in pairwise(edges)))
    return Outline(
        plan,
        source,
        {split: tuple(shards) for split, shards in blocks.items()},
        {split: tuple(sum(shard) * each for shard in shards) for split, shards in blocks.items()},
        None if plan.settings.content == "bitmaps" else OFFICIAL_TILES,
    )


def official_plan(settings: Shard) -> Plan:
    """Return the plan of the official drawings, from their counts alone.

    Raises:
        RefusedError: `shard.classes` names a class that is not official.
    """
    names = settings.classes or official_names()
    counts = []
    for name in names:
        official = official_class(name)
        if official is None:
            raise RefusedError(
                flag("shard.classes"),
                repr(name),
                "not one of the 345 official classes",
                nearest(name, official_names()).strip(),
            )
        counts.append(official.drawings)
    return Plan(tuple(names), tuple(counts), settings)
