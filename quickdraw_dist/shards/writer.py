"""Building a dataset: one group at a time, part files as the memory of what is done, then merge."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from quickdraw_dist import storage
from quickdraw_dist.drawings import SIDE, Source
from quickdraw_dist.errors import CorruptError, RefusedError
from quickdraw_dist.orphans import die_with_parent
from quickdraw_dist.shards import blocks, manifest
from quickdraw_dist.shards.manifest import BlockEntry, Part, RangeRead, ShardEntry
from quickdraw_dist.shards.plan import SPLITS, Plan, ShardPlace

Progress = Callable[[int], object]
"""Called with the number of drawings just written."""

_READERS = 8
"""Ranges of the source read at once: over a network each one waits for a round trip."""


def build_group(
    plan: Plan, group: int, source: Source, dest: str, progress: Progress = lambda _: None
) -> Part:
    """Read a group's rows, publish its shards, then its part file. Memory: the group's pixels."""
    pixels, ranges = read_rows(plan, group, source)
    labels, rows = plan.identities(group)
    shards: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
    per_class = {split: np.zeros(len(plan.classes), np.int64) for split in SPLITS}
    sums = np.zeros(2, np.int64)
    for place in plan.shards(group):
        members = plan.members(group, place)
        contents = (
            blocks.Block(pixels[piece], labels[piece], rows[piece])
            for piece in _pieces(members, plan.settings.block)
        )
        shards[place.split].append(
            _publish_shard(plan, group, place, contents, dest, per_class[place.split], sums)
        )
        progress(len(members))
    part = Part(
        fingerprint=plan.fingerprint,
        group=group,
        shards={split: tuple(entries) for split, entries in shards.items()},
        per_class={split: tuple(int(n) for n in counts) for split, counts in per_class.items()},
        pixel_sum=int(sums[0]),
        pixel_square_sum=int(sums[1]),
        ranges=ranges,
    )
    storage.publish(storage.join(dest, manifest.part_name(group)), manifest.to_json(part))
    return part


def read_rows(
    plan: Plan, group: int, source: Source
) -> tuple[NDArray[np.uint8], tuple[RangeRead, ...]]:
    """A group's pixels (n, 28, 28), class after class, and the checksum of every range."""
    slices = [plan.rows(group, label) for label in range(len(plan.classes))]
    ends = np.cumsum([stop - start for start, stop in slices])
    pixels = np.empty((int(ends[-1]), SIDE, SIDE), np.uint8)

    def fetch(label: int) -> RangeRead:
        start, stop = slices[label]
        target = pixels[ends[label] - (stop - start) : ends[label]]
        if stop > start:
            target[:] = source.read(label, start, stop)
        return RangeRead(bytes=target.nbytes, crc32c=storage.crc32c(target.tobytes()))

    with ThreadPoolExecutor(_READERS) as pool:
        return pixels, tuple(pool.map(fetch, range(len(slices))))


def _pieces(members: NDArray[np.int64], block: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(members), block):
        yield members[start : start + block]


def _publish_shard(
    plan: Plan,
    group: int,
    place: ShardPlace,
    contents: Iterable[blocks.Block],
    dest: str,
    per_class: NDArray[np.int64],
    sums: NDArray[np.int64],
) -> ShardEntry:
    """Encode and publish one shard; adds to the counts and, for train, to the pixel sums."""
    chunks, entries, offset = [], [], 0
    for number, block in enumerate(contents):
        if plan.settings.layout == "per_drawing":
            data = blocks.encode_per_drawing(block)
        else:
            key = f"{place.number:06d}-{number:04d}"
            data = blocks.encode(block, key, plan.settings.compression)
        entries.append(BlockEntry(offset, len(data), len(block.labels), block.crc))
        chunks.append(data)
        offset += len(data)
        per_class += np.bincount(block.labels, minlength=len(per_class))
        if place.split == "train":
            sums += block.pixel_sums()
    data = b"".join([*chunks, blocks.END_OF_TAR])
    storage.publish(storage.join(dest, place.name), data)
    return ShardEntry(
        name=place.name,
        group=group,
        drawings=sum(entry.drawings for entry in entries),
        bytes=len(data),
        crc32c=storage.crc32c(data),
        blocks=tuple(entries),
    )


def finished_parts(plan: Plan, dest: str) -> dict[int, Part]:
    """The parts of all groups that are done and whose shards are all there, by group.

    Raises:
        RefusedError: a part belongs to another plan; the two must not mix in one folder.
    """
    there = {
        f"{split}/{name}": size
        for split in SPLITS
        for name, size in _sizes(storage.join(dest, split), ".tar").items()
    }
    done = {}
    for name in _sizes(storage.join(dest, "parts"), ".json"):
        url = storage.join(dest, "parts", name)
        try:
            part = Part.model_validate_json(storage.read(url))
        except ValidationError:
            continue  # damaged, or of another release: the group is built again
        if part.fingerprint != plan.fingerprint:
            raise RefusedError(
                f"{url}: belongs to another dataset (other classes, counts or --shard settings). "
                "Choose another DEST, or empty this one"
            )
        shards = [shard for entries in part.shards.values() for shard in entries]
        if all(there.get(shard.name) == shard.bytes for shard in shards):
            done[part.group] = part
    return done


def _sizes(folder: str, suffix: str) -> dict[str, int]:
    try:
        return storage.sizes(folder, suffix)
    except FileNotFoundError:
        return {}


def merge_if_complete(plan: Plan, source: Source, dest: str) -> manifest.Manifest | None:
    """Publish the manifest when every group is done; None when some are missing.

    Groups that read something else than what the source's own checksums vouch for are built
    again, once.

    Raises:
        CorruptError: the source still is not what its checksum says.
    """
    headers = tuple(source.header(label) for label in range(len(plan.classes)))
    for attempt in range(2):
        parts = finished_parts(plan, dest)
        if len(parts) < plan.groups:
            return None
        done = [parts[group] for group in range(plan.groups)]
        merged = manifest.merge(plan, done, source.url, headers)
        suspects = _suspects(merged, source)
        if not suspects:
            storage.publish(storage.join(dest, manifest.NAME), manifest.to_json(merged))
            for folder in (*SPLITS, "parts"):
                storage.sweep(storage.join(dest, folder))
            return merged
        if attempt == 0:
            groups = _differing(plan, done, source, suspects)
            names = ", ".join(plan.classes[label] for label in suspects)
            print(
                f"source: {names}: not what its checksum says; building {len(groups)} of "
                f"{plan.groups} groups again",
                file=sys.stderr,
            )
            for group in groups:
                build_group(plan, group, source, dest)
    label = suspects[0]
    start, stop = len(headers[label]), merged.source_files[label].bytes
    raise CorruptError(
        f"{source.url}: {plan.classes[label]!r}: bytes {start:,} to {stop:,} as read have crc32c "
        f"{merged.source_files[label].crc32c:08x} with the header, the file's own is "
        f"{source.checksum(label) or 0:08x}; it changes, or the store is damaged"
    )


def _suspects(merged: manifest.Manifest, source: Source) -> list[int]:
    """Labels whose ranges do not add up to the checksum that the source has of the file."""

    def differs(label: int) -> bool:
        own = source.checksum(label)
        return own is not None and own != merged.source_files[label].crc32c

    with ThreadPoolExecutor(_READERS) as pool:
        answers = list(pool.map(differs, range(len(merged.classes))))
    return [label for label, wrong in enumerate(answers) if wrong]


def _differing(plan: Plan, parts: list[Part], source: Source, labels: Iterable[int]) -> list[int]:
    """Groups whose range of one of these classes reads differently now."""
    groups = []
    for part in parts:
        for label in labels:
            start, stop = plan.rows(part.group, label)
            now = storage.crc32c(source.read(label, start, stop).tobytes()) if stop > start else 0
            if now != part.ranges[label].crc32c:
                groups.append(part.group)
                break
    return groups


_worker: tuple[Plan, Source, str] | None = None


def _start_worker(plan: Plan, source: Source, dest: str) -> None:
    global _worker
    die_with_parent()
    _worker = (plan, source, dest)


def _build_in_worker(group: int) -> int:
    assert _worker is not None, "the pool starts every worker with _start_worker"
    plan, source, dest = _worker
    return sum(plan.split_sizes[build_group(plan, group, source, dest).group])


def build(
    plan: Plan, groups: list[int], source: Source, dest: str, processes: int, progress: Progress
) -> None:
    """Build groups in a pool of local processes, or in this one when that is enough."""
    if processes <= 1 or len(groups) <= 1:
        for group in groups:
            build_group(plan, group, source, dest, progress)
        return
    # spawn: a forked child of a process with gcsfs threads can hang.
    with ProcessPoolExecutor(
        min(processes, len(groups)), get_context("spawn"), _start_worker, (plan, source, dest)
    ) as pool:
        for drawings in pool.map(_build_in_worker, groups):
            progress(drawings)
