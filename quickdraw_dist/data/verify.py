"""Proving a dataset: checksums, identities, labels, and every pixel against its source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.data.drawings.drawing import Source
from quickdraw_dist.data.shards import blocks, integrity, manifest
from quickdraw_dist.data.shards.manifest import BlockEntry, Manifest, ShardEntry
from quickdraw_dist.data.shards.plan import SPLITS, Plan
from quickdraw_dist.data.shards.writer import read_rows


@dataclass(frozen=True)
class _Pixels:
    """A group's drawings as its source has them."""

    source: Source
    slices: list[tuple[int, int]]  # rows of each class
    pixels: NDArray[np.uint8]  # (n, 28, 28), class after class
    crcs: list[int]  # of each class's range
    settled: set[int] = field(default_factory=set)  # labels that were read again

    def differ(
        self, at: NDArray[np.int64], labels: NDArray[np.uint16], drawings: NDArray[np.uint8]
    ) -> NDArray[np.bool_]:
        """Which of these drawings are not those at these places, (n,). Before a class is blamed it
        is read again: a bit may have flipped on the way here."""
        wrong = np.asarray((self.pixels[at] != drawings).any(axis=(1, 2)))
        doubted = set(labels[wrong].tolist()) - self.settled
        for label in doubted:
            start, stop = self.slices[label]
            rows, _ = integrity.read_again(self.source, label, start, stop, self.crcs[label])
            first = sum(b - a for a, b in self.slices[:label])
            self.pixels[first : first + len(rows)] = rows
            self.settled.add(label)
        return np.asarray((self.pixels[at] != drawings).any(axis=(1, 2))) if doubted else wrong


@dataclass(frozen=True)
class _Group:
    """What the plan says of the group in hand."""

    plan: Plan
    slices: NDArray[np.int64]  # (classes, 2): the rows of each class that it reads
    identities: tuple[NDArray[np.uint16], NDArray[np.uint32]]  # labels and rows, as read
    splits: NDArray[np.uint8]  # (n,): the index in SPLITS of each, as read
    original: _Pixels | None  # None without a source


@dataclass(frozen=True)
class _Shard:
    """What a shard holds, and what is wrong with it. A block that cannot be read counts as what
    the plan says: that it is bad is said once, and its rows are not missing besides."""

    problems: list[str]
    labels: NDArray[np.uint16]
    rows: NDArray[np.uint32]
    pixel_sums: NDArray[np.int64] | None  # None when a block could not be read


def find_problems(
    folder: str,
    dataset: Manifest,
    source: Source | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Iterator[str]:
    """Everything that is wrong with a dataset, one line each; nothing at all proves it.

    Args:
        folder: where the shards are.
        dataset: its manifest.
        source: compare every pixel with it, and its official files with Google's MD5, too.
            Memory: a group's pixels.
        progress: called with the number of drawings just checked.
    """
    counts = tuple(file.drawings for file in dataset.source_files)
    plan = Plan(dataset.classes, counts, dataset.settings)
    if manifest.digest(dataset.classes, dataset.splits) != dataset.digest:
        yield f"{folder}: the manifest's digest is not that of its blocks"
    if source is not None:
        if (source.classes, source.counts) != (dataset.classes, counts):
            yield f"{folder}: {source.url} has other classes or counts than it was made from"
            return
        yield from integrity.find_official_problems(source)
    yield from _unknown_shards(folder, dataset)
    first = np.concatenate([[0], np.cumsum(counts)])  # of each class in `seen`
    seen = np.zeros(plan.drawings, np.uint8)
    per_class = {split: np.zeros(len(counts), np.int64) for split in SPLITS}
    sums: list[NDArray[np.int64] | None] = []
    memory = storage.Scratch()
    for number in range(plan.groups):
        group = _group(plan, number, source, memory)
        for split, found in _shards(folder, dataset, group, number):
            yield from found.problems
            np.add.at(seen, first[found.labels] + found.rows, 1)
            per_class[split] += np.bincount(found.labels, minlength=len(counts))
            sums += [found.pixel_sums] if split == "train" else []
            progress(len(found.labels))
    yield from _uncounted(dataset, np.split(seen, first[1:-1]), per_class)
    yield from _normalisation(dataset, sums)


def _unknown_shards(folder: str, dataset: Manifest) -> Iterator[str]:
    """Shards that are there but not in the manifest: stock readers take all of a folder."""
    for split in SPLITS:
        known = {shard.name for shard in dataset.splits[split]}
        try:
            there = storage.sizes(storage.join(folder, split), ".tar")
        except FileNotFoundError:
            continue
        for name in there:
            if f"{split}/{name}" not in known:
                yield f"{storage.join(folder, split, name)}: not in the manifest"


def _uncounted(
    dataset: Manifest, seen: list[NDArray[np.uint8]], per_class: dict[str, NDArray[np.int64]]
) -> Iterator[str]:
    """Rows that are not there exactly once, and counts that are not the manifest's."""
    for name, rows in zip(dataset.classes, seen, strict=True):
        for what, wrong in (("is missing", rows == 0), ("is there more than once", rows > 1)):
            if wrong.any():
                row = int(wrong.argmax())
                yield f"class {name!r}: row {row:,} {what} ({int(wrong.sum()):,} such rows)"
    for split in SPLITS:
        if tuple(per_class[split].tolist()) != dataset.per_class[split]:
            yield f"{split}: the manifest's counts per class are not those of the shards"


def _normalisation(dataset: Manifest, sums: list[NDArray[np.int64] | None]) -> Iterator[str]:
    """A mean and deviation that are not those of the training shards, if all could be read."""
    total = _sum(sums)
    if total is None:
        return
    found = manifest.normalisation(int(total[0]), int(total[1]), sum(dataset.per_class["train"]))
    stored = dataset.pixel_mean, dataset.pixel_std
    if not np.allclose(found, stored, rtol=1e-9):
        yield (
            f"train: pixels have mean {found[0]:.6f} and deviation {found[1]:.6f}, the manifest "
            f"says {stored[0]:.6f} and {stored[1]:.6f}"
        )


def _shards(
    folder: str, dataset: Manifest, group: _Group, number: int
) -> Iterator[tuple[str, _Shard]]:
    """The shards of a group, with their splits."""
    for split in SPLITS:
        for shard in (s for s in dataset.splits[split] if s.group == number):
            yield split, _shard(folder, shard, split, group)


def _group(plan: Plan, number: int, source: Source | None, memory: storage.Scratch) -> _Group:
    """What a group should hold; its pixels lie in `memory`, where those of the one before lay."""
    slices = [plan.rows(number, label) for label in range(len(plan.classes))]
    splits = [table[slice(*s)] for table, s in zip(plan.split_of_rows, slices, strict=True)]
    original = None
    if source is not None:
        pixels, ranges = read_rows(plan, number, source, memory)
        original = _Pixels(source, slices, pixels, [read.crc32c for read in ranges])
    identities = plan.identities(number)
    return _Group(plan, np.array(slices), identities, np.concatenate(splits), original)


def _shard(folder: str, shard: ShardEntry, split: str, group: _Group) -> _Shard:
    """What one shard holds, and everything that is wrong with it."""
    url = storage.join(folder, shard.name)
    data, problems = _read(url, shard)
    if sum(entry.drawings for entry in shard.blocks) != shard.drawings:
        problems.append(f"{url}: the manifest's count of drawings is not that of its blocks")
    place = next((p for p in group.plan.shards(shard.group) if p.name == shard.name), None)
    members = np.empty(0, np.int64) if place is None else group.plan.members(shard.group, place)
    if place is None:
        problems.append(f"{url}: the plan has no such shard in group {shard.group}")
    labels, rows = [group.identities[0][:0]], [group.identities[1][:0]]
    sums, start = [], 0
    for number, entry in enumerate(shard.blocks):
        planned = members[start : start + entry.drawings]
        start += entry.drawings
        block, wrong = (None, []) if data is None else _block(data, entry, split, group)
        problems += [f"{url}: block {number}: {problem}" for problem in wrong]
        labels.append(block.labels if block else group.identities[0][planned])
        rows.append(block.rows if block else group.identities[1][planned])
        sums.append(block.pixel_sums() if block else None)
    return _Shard(
        problems,
        np.concatenate(labels),
        np.concatenate(rows),
        _sum(sums),
    )


def _sum(sums: list[NDArray[np.int64] | None]) -> NDArray[np.int64] | None:
    """All of them together, (2,); None when one is not known."""
    known = [pair for pair in sums if pair is not None]
    return np.array([*known, (0, 0)]).sum(axis=0) if len(known) == len(sums) else None


def _read(url: str, shard: ShardEntry) -> tuple[bytes | None, list[str]]:
    """A shard's bytes, None where they are of no use, and what is wrong with them."""
    try:
        data = storage.read(url)
    except FileNotFoundError:
        return None, [f"{url}: missing"]
    if len(data) != shard.bytes:
        return None, [f"{url}: {len(data):,} bytes, the manifest says {shard.bytes:,}"]
    crc = storage.crc32c(data)
    if crc != shard.crc32c:
        return data, [f"{url}: crc32c {crc:08x}, the manifest says {shard.crc32c:08x}"]
    return data, []


def _block(
    data: bytes, entry: BlockEntry, split: str, group: _Group
) -> tuple[blocks.Block | None, list[str]]:
    """A block, None where it is of no use, and what is wrong with it: contents, labels and rows
    in range, of this group and split, and the right pixels."""
    try:
        block = blocks.decode(data[entry.offset : entry.offset + entry.size], entry.drawings)
    except CorruptError as error:
        return None, [str(error)]
    problems, names = [], group.plan.classes
    if block.crc != entry.crc32c:
        problems.append(f"contents crc32c {block.crc:08x}, not {entry.crc32c:08x}")
    if (block.labels >= len(names)).any():
        return None, [*problems, f"label {block.labels.max()}, there are {len(names)} classes"]
    start, stop = group.slices[block.labels].T
    if not ((block.rows >= start) & (block.rows < stop)).all():
        return None, [*problems, "holds rows of another group"]
    first = np.concatenate([[0], np.cumsum(group.slices[:, 1] - group.slices[:, 0])[:-1]])
    at = first[block.labels] + block.rows - start  # in the order read
    astray = group.splits[at] != SPLITS.index(split)
    if astray.any():
        name = names[block.labels[astray.argmax()]]
        problems.append(f"holds rows of class {name!r} of another split")
    if group.original is not None:
        wrong = group.original.differ(at, block.labels, block.drawings)
        if wrong.any():
            worst = int(wrong.argmax())
            problems.append(
                f"pixels of class {names[block.labels[worst]]!r} row {block.rows[worst]:,} are "
                f"not the source's ({int(wrong.sum()):,} such drawings)"
            )
    return block, problems
