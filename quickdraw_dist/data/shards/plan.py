"""Which drawing goes where: a pure function of classes, counts, sizes and a seed.

Rows of every class are dealt to three splits by a seeded permutation. The work is cut into
groups: group g of K takes rows [g*n/K, (g+1)*n/K) of every class of n rows, so that it reads one
contiguous range a file, and becomes whole shards. Any worker can build any group alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.hashing import key64, permutation
from quickdraw_dist.base.settings import Shard
from quickdraw_dist.base.units import size_text
from quickdraw_dist.data.drawings.drawing import PIXELS

SPLITS = ("train", "val", "test")

_BYTES_A_DRAWING = {
    ("blocks", "gzip"): 290,
    ("blocks", "none"): 800,
    ("per_drawing", "gzip"): 2048,
    ("per_drawing", "none"): 2048,
}
"""Measured on official drawings, a little up. Others compress worse or better, to 800 at most."""


@dataclass(frozen=True)
class ShardPlace:
    """One shard-to-be: its split, its number in the split, and its part of its group's split."""

    split: str
    number: int
    part: int
    parts: int

    @property
    def name(self) -> str:
        """Its path below the dataset's folder."""
        return f"{self.split}/quickdraw-{self.split}-{self.number:06d}.tar"


@dataclass(frozen=True)
class Plan:
    """The whole dataset-to-be."""

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    settings: Shard
    identity: str = ""
    """What else makes the source this one; empty for files, which have checksums."""

    def __post_init__(self) -> None:
        """Refuse what cannot become a dataset."""
        held_out = self.settings.val_fraction + self.settings.test_fraction
        if held_out >= 1:
            raise RefusedError(
                f"--shard.val_fraction + --shard.test_fraction = {held_out:g}: leaves nothing to "
                "train on; below 1 is right, 0.05 each the default"
            )
        if self.settings.block > self.settings.drawings_per_shard:
            raise RefusedError(
                f"--shard.block {self.settings.block}: larger than a shard; at most "
                f"--shard.drawings_per_shard {self.settings.drawings_per_shard} is right"
            )
        for name, count in zip(self.classes, self.counts, strict=True):
            if count == 0:
                raise RefusedError(f"class {name!r} has no drawings; leave it out")

    @cached_property
    def drawings(self) -> int:
        """Drawings of all classes and splits."""
        return sum(self.counts)

    @cached_property
    def groups(self) -> int:
        """Units of work."""
        return -(-self.drawings // (self.settings.group_shards * self.settings.drawings_per_shard))

    @property
    def fingerprint(self) -> str:
        """Names this plan in part files: parts of another plan are never mixed in."""
        settings = self.settings.model_dump(exclude={"classes"})
        facts = [self.classes, self.counts, settings, *([self.identity] if self.identity else [])]
        text = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def estimated_bytes(self) -> int:
        """About what the shards of official drawings take."""
        settings = self.settings
        return self.drawings * _BYTES_A_DRAWING[settings.layout, settings.compression]

    @property
    def worker_bytes(self) -> int:
        """About the memory of a process that builds groups: the pixels of one, the split of every
        drawing, and 200 MB for the interpreter, the reads under way and the shard in hand."""
        return -(-self.drawings // self.groups) * PIXELS + self.drawings + 200_000_000

    def rows(self, group: int, label: int) -> tuple[int, int]:
        """The range of a class's rows that a group reads; the ranges tile the file."""
        count = self.counts[label]
        return group * count // self.groups, (group + 1) * count // self.groups

    def held_out(self, label: int) -> dict[str, int]:
        """Drawings of a class in val and test: round(fraction * n), at least 1 where n >= 3."""
        count = self.counts[label]
        shares = {"val": self.settings.val_fraction, "test": self.settings.test_fraction}
        sizes = {
            split: max(round(share * count), 1 if share > 0 and count >= 3 else 0)
            for split, share in shares.items()
        }
        # Of a few rows, large shares and 'at least 1' can promise more than there are.
        return sizes | {"val": min(sizes["val"], count - sizes["test"])}

    @cached_property
    def split_of_rows(self) -> tuple[NDArray[np.uint8], ...]:
        """For every class, (n,) uint8: the index in SPLITS of every row.

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
        """Drawings of every group and split, (groups, 3)."""
        sizes = np.zeros((self.groups, len(SPLITS)), np.int64)
        for label, table in enumerate(self.split_of_rows):
            for group in range(self.groups):
                start, stop = self.rows(group, label)
                sizes[group] += np.bincount(table[start:stop], minlength=len(SPLITS))
        return sizes

    def shards(self, group: int) -> list[ShardPlace]:
        """The shards that a group becomes, numbered on from those of the groups before it."""
        per_group = -(-self.split_sizes // self.settings.drawings_per_shard)
        first = per_group[:group].sum(axis=0)
        return [
            ShardPlace(split, int(first[s]) + part, part, int(per_group[group, s]))
            for s, split in enumerate(SPLITS)
            for part in range(int(per_group[group, s]))
        ]

    def identities(self, group: int) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
        """Labels (n,) uint16 and rows (n,) uint32 of a group's drawings, in the order read."""
        ranges = [self.rows(group, label) for label in range(len(self.classes))]
        sizes = [stop - start for start, stop in ranges]
        labels = np.repeat(np.arange(len(ranges), dtype=np.uint16), sizes)
        rows = np.concatenate([np.arange(a, b, dtype=np.uint32) for a, b in ranges])
        return labels, rows

    def members(self, group: int, place: ShardPlace) -> NDArray[np.int64]:
        """Which of a group's drawings a shard holds and in which order, as indices (n,) into
        `identities`: the split's drawings of the group, permuted, dealt out evenly."""
        dealt = _dealt(self, group, place.split)
        start = place.part * len(dealt) // place.parts
        stop = (place.part + 1) * len(dealt) // place.parts
        return dealt[start:stop]


@lru_cache(maxsize=1)  # the shards of a group's split are asked for one after the other
def _dealt(plan: Plan, group: int, split: str) -> NDArray[np.int64]:
    """Which of a group's drawings belong to a split, permuted, as indices into `identities`."""
    of_split = np.concatenate(
        [
            table[slice(*plan.rows(group, label))] == SPLITS.index(split)
            for label, table in enumerate(plan.split_of_rows)
        ]
    ).nonzero()[0]
    order = permutation(len(of_split), key64(plan.settings.seed, split, group))
    dealt = np.asarray(of_split[order])
    dealt.flags.writeable = False
    return dealt


def describe(plan: Plan, processes: int = 1) -> str:
    """The plan in words, for --dry-run: what a run with so many local processes will do."""
    sizes = plan.split_sizes.sum(axis=0)
    shards = [plan.shards(group) for group in range(plan.groups)]
    numbers = {split: sum(p.split == split for g in shards for p in g) for split in SPLITS}
    lines = [
        f"classes   {len(plan.classes):,}",
        f"drawings  {plan.drawings:,} ({size_text(plan.drawings * PIXELS)} of pixels)",
        *(
            f"{split:8}  {size:,} drawings in {numbers[split]:,} shards"
            for split, size in zip(SPLITS, sizes, strict=True)
        ),
        f"groups    {plan.groups:,} of about {plan.drawings // plan.groups:,} drawings",
        f"memory    about {size_text(plan.worker_bytes)} per process, "
        f"{size_text(processes * plan.worker_bytes)} for {processes}",
        f"writes    about {size_text(plan.estimated_bytes)}, if they compress as official ones",
        f"requests  {plan.groups * len(plan.classes):,} range reads, "
        f"{sum(numbers.values()) + plan.groups + 1:,} writes",
    ]
    return "\n".join(lines)
