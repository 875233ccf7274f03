"""Verify a dataset: checksums, identities, labels, and every drawing against its source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, repeat

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.data.drawings.drawing import SIDE, Drawings, Source, is_blank
from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.drawings.strokes.totals import Totals
from quickdraw_dist.data.external import samples
from quickdraw_dist.data.shards import blocks, integrity, manifest
from quickdraw_dist.data.shards.blocks import Block, pixel_sums
from quickdraw_dist.data.shards.group import read_rows, replace_rows
from quickdraw_dist.data.shards.manifest import normalisation, summed_drawings
from quickdraw_dist.data.shards.plan import SPLITS, Plan
from quickdraw_dist.data.shards.schema import BlockEntry, Manifest, ShardEntry


def find_problems(
    folder: str,
    dataset: Manifest,
    source: Source | None = None,
    progress: Callable[[int], object] = lambda _: None,
    blank: Counter[str] | None = None,
) -> Iterator[str]:
    """Yield a line for everything that is wrong with a dataset; no line proves it.

    Args:
        folder: where the shards are.
        dataset: its manifest, which agrees with itself (`manifest.read` checks that).
        source: compare every pixel or point with it, and its official files with Google's MD5.
            Takes the memory of one group's drawings.
        progress: called with the number of drawings just verified.
        blank: counts the blank drawings of each class.
    """
    counts = tuple(file.drawings for file in dataset.source_files)
    plan = Plan(dataset.classes, counts, dataset.settings)
    if source is not None:
        if (source.classes, source.counts) != (dataset.classes, counts):
            yield f"{folder}: {source.url} has other classes or counts than it was made from"
            return
        yield from integrity.find_official_problems(source)
    yield from _find_unlisted_shards(folder, dataset)
    first = np.concatenate([[0], np.cumsum(counts)])  # of each class in `seen`
    seen = np.zeros(plan.drawings, np.uint8)
    sums: list[NDArray[np.int64] | None] = []
    memory = storage.Scratch()
    for number in range(plan.groups):
        group = _read_group(plan, number, source, memory)
        for split in SPLITS:
            for entry in (shard for shard in dataset.splits[split] if shard.group == number):
                shard = _verify_shard(folder, entry, split, group)
                yield from shard.problems
                np.add.at(seen, first[shard.labels] + shard.rows, 1)
                sums += [shard.pixel_sums] if split == "train" else []
                progress(len(shard.labels))
                if blank is not None:
                    blank.update(dataset.classes[label] for label in shard.blank_labels)
    yield from _find_miscounts(dataset, np.split(seen, first[1:-1]))
    yield from _find_wrong_normalisation(dataset, sums)


def _find_unlisted_shards(folder: str, dataset: Manifest) -> Iterator[str]:
    """Yield shards that the manifest does not list: other readers take all of a folder."""
    for split in SPLITS:
        listed = {shard.name for shard in dataset.splits[split]}
        for name in manifest.stored_sizes(storage.join(folder, split), ".tar"):
            if f"{split}/{name}" not in listed:
                yield f"{storage.join(folder, split, name)}: not in the manifest"


def _find_miscounts(dataset: Manifest, seen: list[NDArray[np.uint8]]) -> Iterator[str]:
    """Yield rows that are not stored exactly once."""
    for name, rows in zip(dataset.classes, seen, strict=True):
        for what, wrong in (("is missing", rows == 0), ("is there more than once", rows > 1)):
            if wrong.any():
                row = int(wrong.argmax())
                yield f"class {name!r}: row {row:,} {what} ({int(wrong.sum()):,} such rows)"


def _find_wrong_normalisation(
    dataset: Manifest, sums: list[NDArray[np.int64] | None]
) -> Iterator[str]:
    """Yield a mean or deviation that is not the training shards', if all could be read."""
    total = _sum(sums)
    if total is None:
        return
    summed = summed_drawings(dataset.splits["train"], dataset.settings.content)
    found = normalisation(int(total[0]), int(total[1]), summed)
    stored = dataset.pixel_mean, dataset.pixel_std
    if not np.allclose(found, stored, rtol=1e-9):
        yield (
            f"train: pixels have mean {found[0]:.6f} and deviation {found[1]:.6f}, the manifest "
            f"says {stored[0]:.6f} and {stored[1]:.6f}"
        )


@dataclass
class _Original:
    """A group's drawings as the source has them."""

    source: Source
    ranges: list[tuple[int, int]]  # rows of each class
    drawings: Drawings  # class after class
    crcs: list[int]  # of each range
    read_again: set[int] = field(default_factory=set)  # labels

    def differs(self, at: NDArray[np.int64], block: Block) -> NDArray[np.bool_]:
        """Return which drawings of a block are not those at the indices `at`, (n,). A class that
        differs is read again before it is blamed: a bit may have flipped in transit."""
        wrong = self._compare(at, block)
        doubted = set(block.labels[wrong].tolist()) - self.read_again
        for label in doubted:
            start, stop = self.ranges[label]
            rows, _ = integrity.read_again(self.source, label, start, stop, self.crcs[label])
            first = sum(b - a for a, b in self.ranges[:label])
            self.drawings = replace_rows(self.drawings, first, rows)
            self.read_again.add(label)
        return self._compare(at, block) if doubted else wrong

    def _compare(self, at: NDArray[np.int64], block: Block) -> NDArray[np.bool_]:
        if isinstance(self.drawings, Strokes):
            assert isinstance(block.drawings, Strokes)
            return self.drawings.take(at).differs(block.drawings)
        return np.asarray((self.drawings[at] != block.pixels).any(axis=(1, 2)))


@dataclass(frozen=True)
class _Group:
    """What the plan gives to one group; its drawings are in the order read."""

    plan: Plan
    number: int
    ranges: NDArray[np.int64]  # (classes, 2): rows of each class
    labels: NDArray[np.uint16]  # (n,)
    rows: NDArray[np.uint32]  # (n,)
    splits: NDArray[np.uint8]  # (n,): index in SPLITS
    original: _Original | None  # None without a source


def _read_group(plan: Plan, number: int, source: Source | None, memory: storage.Scratch) -> _Group:
    """Return a group; pixels of bitmaps lie in `memory`, where the next group's replace them."""
    ranges, original = plan.ranges(number), None
    if source is not None:
        drawings, read = read_rows(plan, number, source, memory)
        original = _Original(source, ranges, drawings, [one.crc32c for one in read])
    labels, rows = plan.identities(number)
    return _Group(plan, number, np.array(ranges), labels, rows, plan.splits(number), original)


@dataclass(frozen=True)
class _Shard:
    """The contents of a shard and what is wrong with it. An unreadable block is reported once and
    counts as what the plan says: its rows are not reported as missing, too."""

    problems: list[str]
    labels: NDArray[np.uint16]
    rows: NDArray[np.uint32]
    blank_labels: NDArray[np.uint16]  # of the blank drawings
    pixel_sums: NDArray[np.int64] | None  # None when a block could not be read


def _verify_shard(folder: str, shard: ShardEntry, split: str, group: _Group) -> _Shard:
    """Read a shard and compare it with the manifest, the plan and the source."""
    url = storage.join(folder, shard.name)
    data, problems = _read(url, shard)
    planned = next((p for p in group.plan.shards(group.number) if p.name == shard.name), None)
    members = np.empty(0, np.int64)
    if planned is None:
        problems.append(f"{url}: the plan has no such shard in group {group.number}")
    else:
        members = group.plan.members(group.number, planned)
    labels, rows = [group.labels[:0]], [group.rows[:0]]
    blank = [group.labels[:0]]
    sums, totals, start = [], [], 0
    contents = repeat(None) if data is None else _decode(url, data, shard, group.plan)
    for number, (entry, block) in enumerate(zip(shard.blocks, contents, strict=False)):
        expected = members[start : start + entry.drawings]
        start += entry.drawings
        wrong: list[str] = []
        if isinstance(block, CorruptError):
            block, wrong = None, [str(block).removeprefix(f"{url}: ")]
        elif block is not None:
            block, wrong = _verify_block(block, entry, split, group)
        problems += [f"{url}: block {number}: {problem}" for problem in wrong]
        labels.append(block.labels if block else group.labels[expected])
        rows.append(block.rows if block else group.rows[expected])
        sums.append(pixel_sums(block.drawings) if block else None)
        totals += [block.totals] if block else []
        blank += [block.labels[is_blank(block.drawings)]] if block else []
    if len(totals) == len(shard.blocks) and Totals.add(totals) != shard.totals:
        found = Totals.add(totals)
        problems.append(f"{url}: holds {_text(found)}, the manifest says {_text(shard.totals)}")
    blank_labels = np.concatenate(blank)
    return _Shard(problems, np.concatenate(labels), np.concatenate(rows), blank_labels, _sum(sums))


def _text(totals: Totals) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in totals._asdict().items())


def _sum(sums: list[NDArray[np.int64] | None]) -> NDArray[np.int64] | None:
    """Return the total of pixel sums, (2,); None when one is not known."""
    known = [pair for pair in sums if pair is not None]
    return np.array([*known, (0, 0)]).sum(axis=0) if len(known) == len(sums) else None


def _read(url: str, shard: ShardEntry) -> tuple[bytes | None, list[str]]:
    """Return a shard's bytes, None where they are useless, and what is wrong with them."""
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


def _decode(url: str, data: bytes, shard: ShardEntry, plan: Plan) -> Iterator[Block | CorruptError]:
    """Yield every block of a shard, or why it cannot be read."""
    stored = samples.read_samples([url])  # reads nothing yet
    for entry in shard.blocks:
        try:
            if plan.settings.layout == "per_drawing":
                yield _join(list(islice(stored, entry.drawings)), len(plan.classes))
            else:
                piece = data[entry.offset : entry.offset + entry.size]
                yield blocks.decode(piece, entry.drawings)
        except CorruptError as error:
            yield error


def _join(found: list[samples.Sample], classes: int) -> Block:
    """Return the drawings of a per-drawing shard's samples, read the way external data is."""
    drawings = np.empty((len(found), SIDE, SIDE), np.uint8)
    labels, rows = np.empty(len(found), np.uint16), np.empty(len(found), np.uint32)
    for at, sample in enumerate(found):
        block, key = samples.decode(sample, classes), str(sample["__key__"])
        label, _, row = key.partition("-")
        if label != f"{block.labels[0]:05d}" or not row.isdecimal() or int(row) >= 2**32:
            raise CorruptError(key, None, f"not the name of a drawing of class {block.labels[0]}")
        drawings[at], labels[at], rows[at] = block.pixels[0], block.labels[0], int(row)
    return Block(drawings, labels, rows)


def _verify_block(
    block: Block, entry: BlockEntry, split: str, group: _Group
) -> tuple[Block | None, list[str]]:
    """Return a block, None where it is useless, and what is wrong with it: contents, labels and
    rows out of range, of another group or split, or other drawings than the source's."""
    problems, names = [], group.plan.classes
    if len(block.labels) != entry.drawings:
        return None, [f"{len(block.labels):,} drawings, not {entry.drawings:,}"]
    content = "strokes" if isinstance(block.drawings, Strokes) else "bitmaps"
    if content != group.plan.settings.content:
        return None, [f"{content}, not {group.plan.settings.content}"]
    if block.crc != entry.crc32c:
        problems.append(f"contents crc32c {block.crc:08x}, not {entry.crc32c:08x}")
    if (block.labels >= len(names)).any():
        return None, [*problems, f"label {block.labels.max()}, there are {len(names)} classes"]
    start, stop = group.ranges[block.labels].T
    if not ((block.rows >= start) & (block.rows < stop)).all():
        return None, [*problems, "holds rows of another group"]
    first = np.concatenate([[0], np.cumsum(group.ranges[:, 1] - group.ranges[:, 0])[:-1]])
    at = first[block.labels] + block.rows - start  # in the order read
    misplaced = group.splits[at] != SPLITS.index(split)
    if misplaced.any():
        name = names[block.labels[misplaced.argmax()]]
        problems.append(f"holds rows of class {name!r} of another split")
    if group.original is not None:
        wrong = group.original.differs(at, block)
        if wrong.any():
            worst = int(wrong.argmax())
            what = "strokes" if content == "strokes" else "pixels"
            problems.append(
                f"{what} of class {names[block.labels[worst]]!r} row {block.rows[worst]:,} are "
                f"not the source's ({int(wrong.sum()):,} such drawings)"
            )
    return block, problems
