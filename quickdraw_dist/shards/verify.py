"""Proving a dataset: checksums, identities, labels, and every pixel against its source."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist import storage
from quickdraw_dist.drawings import Source
from quickdraw_dist.errors import CorruptError
from quickdraw_dist.shards import blocks, manifest
from quickdraw_dist.shards.manifest import Manifest, ShardEntry
from quickdraw_dist.shards.plan import SPLITS, Plan
from quickdraw_dist.shards.writer import read_rows


def problems(
    folder: str,
    dataset: Manifest,
    source: Source | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Iterator[str]:
    """Everything that is wrong with a dataset, one line each; nothing at all proves it.

    Args:
        folder: where the shards are.
        dataset: its manifest.
        source: compare every pixel with it, too. Memory: a group's pixels.
        progress: called with the number of drawings just checked.
    """
    counts = tuple(file.drawings for file in dataset.source_files)
    plan = Plan(dataset.classes, counts, dataset.settings)
    if manifest.digest(dataset.classes, dataset.splits) != dataset.digest:
        yield f"{folder}: the manifest's digest is not that of its blocks"
    if source is not None and (source.classes, source.counts) != (dataset.classes, counts):
        yield f"{folder}: {source.url} has other classes or counts than the dataset was made from"
        return
    yield from _unknown_shards(folder, dataset)
    seen = [np.zeros(count, np.uint8) for count in counts]
    per_class = {split: np.zeros(len(counts), np.int64) for split in SPLITS}
    sums = np.zeros(2, np.int64)
    for group in range(plan.groups):
        pixels = None if source is None else read_rows(plan, group, source)[0]
        for split in SPLITS:
            for shard in (s for s in dataset.splits[split] if s.group == group):
                yield from _shard(folder, shard, plan, split, seen, per_class[split], pixels, sums)
                progress(shard.drawings)
    for label, rows in enumerate(seen):
        for what, wrong in (("is missing", rows == 0), ("is there more than once", rows > 1)):
            if wrong.any():
                row = int(wrong.argmax())
                yield (
                    f"class {dataset.classes[label]!r}: row {row:,} {what}"
                    f" ({int(wrong.sum()):,} such rows)"
                )
    for split in SPLITS:
        if tuple(int(n) for n in per_class[split]) != dataset.per_class[split]:
            yield f"{split}: the manifest's counts per class are not those of the shards"
    mean, std = manifest.normalisation(int(sums[0]), int(sums[1]), int(per_class["train"].sum()))
    if not np.allclose((mean, std), (dataset.pixel_mean, dataset.pixel_std), rtol=1e-9):
        yield (
            f"train: pixels have mean {mean:.6f} and deviation {std:.6f}, the manifest says "
            f"{dataset.pixel_mean:.6f} and {dataset.pixel_std:.6f}"
        )


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


def _shard(
    folder: str,
    shard: ShardEntry,
    plan: Plan,
    split: str,
    seen: list[NDArray[np.uint8]],
    per_class: NDArray[np.int64],
    pixels: NDArray[np.uint8] | None,
    sums: NDArray[np.int64],
) -> Iterator[str]:
    """What is wrong with one shard; marks its rows as seen, counts its labels, adds up train."""
    url = storage.join(folder, shard.name)
    try:
        data = storage.read(url)
    except FileNotFoundError:
        yield f"{url}: missing"
        return
    if len(data) != shard.bytes:
        yield f"{url}: {len(data):,} bytes, the manifest says {shard.bytes:,}"
        return
    crc = storage.crc32c(data)
    if crc != shard.crc32c:
        yield f"{url}: crc32c {crc:08x}, the manifest says {shard.crc32c:08x}"
    if sum(entry.drawings for entry in shard.blocks) != shard.drawings:
        yield f"{url}: the manifest's count of drawings is not that of its blocks"
    for number, entry in enumerate(shard.blocks):
        where = f"{url}: block {number}"
        try:
            block = blocks.decode(data[entry.offset : entry.offset + entry.size], entry.drawings)
        except CorruptError as error:
            yield f"{where}: {error}"
            continue
        if block.crc != entry.crc32c:
            yield f"{where}: contents crc32c {block.crc:08x}, not {entry.crc32c:08x}"
        if split == "train":
            sums += block.pixel_sums()
        yield from _identities(where, block, plan, shard.group, split, seen, per_class, pixels)


def _identities(
    where: str,
    block: blocks.Block,
    plan: Plan,
    group: int,
    split: str,
    seen: list[NDArray[np.uint8]],
    per_class: NDArray[np.int64],
    pixels: NDArray[np.uint8] | None,
) -> Iterator[str]:
    """Labels and rows of a block: in range, of this group and split, and the right pixels."""
    slices = np.array([plan.rows(group, label) for label in range(len(plan.classes))])
    if block.labels.max() >= len(plan.classes):
        yield f"{where}: label {block.labels.max()}, there are {len(plan.classes)} classes"
        return
    start, stop = slices[block.labels].T
    if not ((block.rows >= start) & (block.rows < stop)).all():
        yield f"{where}: holds rows of another group"
        return
    np.add.at(per_class, block.labels, 1)
    for label in np.unique(block.labels):
        rows = block.rows[block.labels == label]
        np.add.at(seen[label], rows, 1)
        if (plan.split_of_rows[label][rows] != SPLITS.index(split)).any():
            yield f"{where}: holds rows of class {plan.classes[label]!r} of another split"
    if pixels is not None:
        first = np.concatenate([[0], np.cumsum(slices[:, 1] - slices[:, 0])[:-1]])
        original = pixels[first[block.labels] + block.rows - start]
        wrong = (original != block.drawings).any(axis=(1, 2))
        if wrong.any():
            at = int(wrong.argmax())
            yield (
                f"{where}: pixels of class {plan.classes[block.labels[at]]!r} row "
                f"{block.rows[at]:,} are not the source's ({int(wrong.sum()):,} such drawings)"
            )
