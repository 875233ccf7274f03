"""Plan which drawing goes where: a pure function of classes, counts, sizes and a seed.

A seeded permutation assigns the rows of every class to three splits. The work is divided into
groups: group g of K takes rows [g*n/K, (g+1)*n/K) of every class of n rows, so it reads one
contiguous range per file, and becomes whole shards. Any worker can build any group alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.base.errors import RefusedError, flag
from quickdraw_dist.base.hashing import key64, permutation
from quickdraw_dist.base.settings import Shard
from quickdraw_dist.base.units import size_text
from quickdraw_dist.data.drawings.drawing import PIXELS

SPLITS = ("train", "val", "test")

_BYTES_PER_DRAWING = {
    ("bitmaps", "blocks", "gzip"): 290,
    ("bitmaps", "blocks", "none"): 800,
    ("bitmaps", "per_drawing", "gzip"): 2048,
    ("bitmaps", "per_drawing", "none"): 2048,
    ("strokes", "blocks", "gzip"): 93,
    ("strokes", "blocks", "none"): 120,
}
"""Measured on official drawings, rounded up. Other bitmaps compress worse or better, to 800 at
most; other strokes may have any number of points."""

_MEMORY_PER_DRAWING = {"bitmaps": PIXELS, "strokes": 105}
"""Bytes of a decoded drawing: of official ones, for strokes."""

RECORD_INDEX_BYTES = 2
"""Per drawing of a source of strokes, in memory, and at most as much in its file: the length of its
record. Raw ones take twice that in a class with a record of 64 KiB or more."""


def stored_settings(settings: Shard) -> dict[str, Any]:
    """Return the settings that shards follow from: not the limit `max_blank`, and `content` only
    where it is new, so that bitmaps are described as before there were strokes."""
    bitmaps = settings.content == "bitmaps"
    return settings.model_dump(
        mode="json", exclude={"max_blank", *(["content"] if bitmaps else [])}
    )


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be written: its split, its number in the split, and its index among the
    `of` shards of its group and split."""

    split: str
    number: int
    index: int
    of: int

    @property
    def name(self) -> str:
        """Path of the shard below the dataset's folder."""
        return shard_name(self.split, self.number)


def shard_name(split: str, number: int) -> str:
    """Return the path of a split's shard below the dataset's folder."""
    return f"{split}/quickdraw-{split}-{number:06d}.tar"


@dataclass(frozen=True)
class Plan:
    """A dataset to be written.

    Raises:
        RefusedError: fractions, sizes or a class do not make a dataset.
    """

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    settings: Shard
    identity: str = ""
    """What distinguishes the source beside classes and counts; empty for files, which have
    checksums."""

    def __post_init__(self) -> None:
        fractions = self.settings.val_fraction, self.settings.test_fraction
        if sum(fractions) >= 1:
            flags = map(flag, ("shard.val_fraction", "shard.test_fraction"), fractions)
            remedy = "Use a sum below 1; the default is 0.05 each"
            raise RefusedError(" ".join(flags), None, "nothing is left to train on", remedy)
        if self.settings.block > self.settings.drawings_per_shard:
            most = self.settings.drawings_per_shard
            problem = f"larger than a shard ({flag('shard.drawings_per_shard', most)})"
            remedy = f"Use {flag('shard.block', most)} at most"
            raise RefusedError("--shard.block", self.settings.block, problem, remedy)
        if (self.settings.content, self.settings.layout) == ("strokes", "per_drawing"):
            subject = f"{flag('shard.content', 'strokes')} {flag('shard.layout', 'per_drawing')}"
            problem = "that layout is a picture per drawing, which strokes are not"
            remedy = "Leave out --shard.layout to store strokes, or --shard.content for pictures"
            raise RefusedError(subject, None, problem, remedy)
        for name, count in zip(self.classes, self.counts, strict=True):
            if count == 0:
                remedy = "List the other classes with --shard.classes"
                raise RefusedError(f"class {name!r}", None, "the source has no drawings", remedy)

    @cached_property
    def drawings(self) -> int:
        """Number of drawings of all classes and splits."""
        return sum(self.counts)

    @cached_property
    def groups(self) -> int:
        """Number of groups, the units of work."""
        return -(-self.drawings // (self.settings.group_shards * self.settings.drawings_per_shard))

    @property
    def fingerprint(self) -> str:
        """Hash that ties part files to this plan: those of another plan are never merged."""
        settings = stored_settings(self.settings)
        del settings["classes"]  # those of the source, if none were chosen
        fields = [self.classes, self.counts, settings, *([self.identity] if self.identity else [])]
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def estimated_bytes(self) -> int:
        """Estimated bytes of all shards, if the drawings compress as official ones do."""
        settings = self.settings
        kind = settings.content, settings.layout, settings.compression
        return self.drawings * _BYTES_PER_DRAWING[kind]

    @property
    def worker_bytes(self) -> int:
        """Estimated memory of a process that builds groups: the drawings of one group, the split of
        every drawing, for strokes the index of the source's records, and 200 MB for the
        interpreter, reads in progress and one shard."""
        each, of_all = _MEMORY_PER_DRAWING[self.settings.content], 1
        if self.settings.content == "strokes":
            each *= 2  # the ranges as read, and joined
            of_all += RECORD_INDEX_BYTES
        return -(-self.drawings // self.groups) * each + self.drawings * of_all + 200_000_000

    def rows(self, group: int, label: int) -> tuple[int, int]:
        """Return the rows [start, stop) of a class that a group reads; the ranges tile the file."""
        count = self.counts[label]
        return group * count // self.groups, (group + 1) * count // self.groups

    def ranges(self, group: int) -> list[tuple[int, int]]:
        """Return the rows [start, stop) of every class that a group reads."""
        return [self.rows(group, label) for label in range(len(self.classes))]

    def held_out(self, label: int) -> dict[str, int]:
        """Return a class's drawings in val and test: round(fraction * n), at least 1 if n >= 3."""
        count = self.counts[label]
        shares = {"val": self.settings.val_fraction, "test": self.settings.test_fraction}
        sizes = {
            split: max(round(share * count), 1 if share > 0 and count >= 3 else 0)
            for split, share in shares.items()
        }
        # Large fractions and 'at least 1' can add up to more than a few rows.
        return sizes | {"val": min(sizes["val"], count - sizes["test"])}

    def split_counts(self, label: int) -> dict[str, int]:
        """Return a class's drawings in every split."""
        held_out = self.held_out(label)
        return {"train": self.counts[label] - sum(held_out.values()), **held_out}

    @cached_property
    def split_of_rows(self) -> tuple[NDArray[np.uint8], ...]:
        """Index in SPLITS of every row, (n,) uint8 per class.

        Keyed by the class's name, so that a dataset of fewer classes has the same test drawings.
        """
        tables = []
        for label, (name, count) in enumerate(zip(self.classes, self.counts, strict=True)):
            order = permutation(count, key64(self.settings.seed, "split", name))
            sizes = self.held_out(label)
            table = np.zeros(count, np.uint8)
            table[order[: sizes["val"]]] = SPLITS.index("val")
            table[order[sizes["val"] : sizes["val"] + sizes["test"]]] = SPLITS.index("test")
            tables.append(table)
        return tuple(tables)

    @cached_property
    def split_sizes(self) -> NDArray[np.int64]:
        """Number of drawings of every group and split, (groups, 3)."""
        sizes = np.zeros((self.groups, len(SPLITS)), np.int64)
        for label, table in enumerate(self.split_of_rows):
            for group in range(self.groups):
                start, stop = self.rows(group, label)
                sizes[group] += np.bincount(table[start:stop], minlength=len(SPLITS))
        return sizes

    def shards(self, group: int) -> list[PlannedShard]:
        """Return the shards of a group; their numbers continue those of the groups before it."""
        per_group = -(-self.split_sizes // self.settings.drawings_per_shard)
        first = per_group[:group].sum(axis=0)
        return [
            PlannedShard(split, int(first[s]) + index, index, int(per_group[group, s]))
            for s, split in enumerate(SPLITS)
            for index in range(int(per_group[group, s]))
        ]

    def identities(self, group: int) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
        """Return labels, (n,) uint16, and rows, (n,) uint32, of a group in the order read."""
        ranges = self.ranges(group)
        sizes = [stop - start for start, stop in ranges]
        labels = np.repeat(np.arange(len(ranges), dtype=np.uint16), sizes)
        rows = np.concatenate([np.arange(a, b, dtype=np.uint32) for a, b in ranges])
        return labels, rows

    def splits(self, group: int) -> NDArray[np.uint8]:
        """Return the index in SPLITS of every drawing of a group, (n,), in the order read."""
        tables = zip(self.split_of_rows, self.ranges(group), strict=True)
        return np.concatenate([table[start:stop] for table, (start, stop) in tables])

    def members(self, group: int, shard: PlannedShard) -> NDArray[np.int64]:
        """Return a shard's drawings in order, (n,) indices into `identities`: an even slice of the
        group's drawings of that split, permuted."""
        order = _permuted(self, group, shard.split)
        start = shard.index * len(order) // shard.of
        stop = (shard.index + 1) * len(order) // shard.of
        return order[start:stop]


@lru_cache(maxsize=1)  # the shards of a group's split are requested in a row
def _permuted(plan: Plan, group: int, split: str) -> NDArray[np.int64]:
    """Return a group's drawings of a split, permuted, as indices into `identities`."""
    of_split = (plan.splits(group) == SPLITS.index(split)).nonzero()[0]
    order = permutation(len(of_split), key64(plan.settings.seed, split, group))
    permuted = np.asarray(of_split[order])
    permuted.flags.writeable = False
    return permuted


def describe(plan: Plan, processes: int = 1) -> str:
    """Return the plan in words, for --dry-run, and what a run of `processes` local ones takes."""
    sizes = plan.split_sizes.sum(axis=0)
    shards = [plan.shards(group) for group in range(plan.groups)]
    numbers = {split: sum(p.split == split for g in shards for p in g) for split in SPLITS}
    decoded = size_text(plan.drawings * _MEMORY_PER_DRAWING[plan.settings.content])
    bitmaps = plan.settings.content == "bitmaps"
    condition = "if they compress as official ones" if bitmaps else "if they are as official ones"
    lines = [
        f"classes   {len(plan.classes):,}",
        f"drawings  {plan.drawings:,} "
        + (f"({decoded} of pixels)" if bitmaps else f"(about {decoded} of strokes)"),
        *(
            f"{split:8}  {size:,} drawings in {numbers[split]:,} shards"
            for split, size in zip(SPLITS, sizes, strict=True)
        ),
        f"groups    {plan.groups:,} of about {plan.drawings // plan.groups:,} drawings",
        f"memory    about {size_text(plan.worker_bytes)} per process, "
        f"{size_text(processes * plan.worker_bytes)} for {processes}",
        f"writes    about {size_text(plan.estimated_bytes)}, {condition}",
        f"requests  {plan.groups * len(plan.classes):,} range reads, "
        f"{sum(numbers.values()) + plan.groups + 1:,} writes",
    ]
    return "\n".join(lines)
