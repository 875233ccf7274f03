"""Building a dataset: one group at a time, part files as the memory of what is done, then merge."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from quickdraw_dist.base import process, storage
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.storage import Scratch
from quickdraw_dist.data.drawings.drawing import PIXELS, SIDE, Source
from quickdraw_dist.data.shards import blocks, integrity, manifest
from quickdraw_dist.data.shards.manifest import BlockEntry, Part, RangeRead, ShardEntry
from quickdraw_dist.data.shards.plan import SPLITS, Plan, ShardPlace

Progress = Callable[[int], object]
"""Called with the number of drawings just written."""


def build_group(
    plan: Plan,
    group: int,
    source: Source,
    dest: str,
    memory: Scratch,
    progress: Progress = lambda _: None,
    true_crcs: Sequence[int] | None = None,
) -> Part:
    """Read a group's rows into `memory`, publish its shards, then its part file.

    `true_crcs` are the CRC-32C of its ranges, class by class, where they are known already: a
    range that comes with another one is read again.
    """
    pixels, ranges = read_rows(plan, group, source, memory, true_crcs)
    labels, rows = plan.identities(group)
    shards: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
    per_class = {split: np.zeros(len(plan.classes), np.int64) for split in SPLITS}
    sums = np.zeros(2, np.int64)
    for place in plan.shards(group):
        members = plan.members(group, place)
        contents = _blocks(members, plan.settings.block, pixels, labels, rows)
        entry, pixel_sums = _publish_shard(plan, group, place, contents, dest)
        shards[place.split].append(entry)
        per_class[place.split] += np.bincount(labels[members], minlength=len(plan.classes))
        sums += pixel_sums
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
    plan: Plan,
    group: int,
    source: Source,
    memory: Scratch,
    true_crcs: Sequence[int] | None = None,
) -> tuple[NDArray[np.uint8], tuple[RangeRead, ...]]:
    """A group's pixels (n, 28, 28), class after class, which lie in `memory`, and the checksum of
    every range."""
    slices = [plan.rows(group, label) for label in range(len(plan.classes))]
    ends = np.cumsum([stop - start for start, stop in slices])
    pixels = np.frombuffer(memory.view(int(ends[-1]) * PIXELS), np.uint8).reshape(-1, SIDE, SIDE)

    def fetch(label: int) -> RangeRead:
        start, stop = slices[label]
        true_crc = None if true_crcs is None else true_crcs[label]
        rows, crc = integrity.read(source, label, start, stop, true_crc)
        pixels[ends[label] - len(rows) : ends[label]] = rows
        return RangeRead(bytes=rows.nbytes, crc32c=crc)

    with ThreadPoolExecutor(integrity.READERS) as pool:
        return pixels, tuple(pool.map(fetch, range(len(slices))))


def _blocks(
    members: NDArray[np.int64],
    size: int,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.uint16],
    rows: NDArray[np.uint32],
) -> Iterator[blocks.Block]:
    """A shard's blocks. Each is overwritten by the next one."""
    buffer = np.empty((size, SIDE, SIDE), np.uint8)
    for start in range(0, len(members), size):
        piece = members[start : start + size]
        # 'clip' spares a copy; there is nothing to clip.
        drawings = np.take(pixels, piece, axis=0, out=buffer[: len(piece)], mode="clip")
        yield blocks.Block(drawings, labels[piece], rows[piece])


def _publish_shard(
    plan: Plan, group: int, place: ShardPlace, contents: Iterable[blocks.Block], dest: str
) -> tuple[ShardEntry, NDArray[np.int64]]:
    """Encode and publish one shard; its entry, and for train its pixel sums, for others zeros."""
    chunks, entries, offset = [], [], 0
    sums = np.zeros(2, np.int64)
    for number, block in enumerate(contents):
        if plan.settings.layout == "per_drawing":
            data = blocks.encode_per_drawing(block)
        else:
            key = f"{place.number:06d}-{number:04d}"
            data = blocks.encode(block, key, plan.settings.compression)
        entries.append(BlockEntry(offset, len(data), len(block.labels), block.crc))
        chunks.append(data)
        offset += len(data)
        if place.split == "train":
            sums += block.pixel_sums()
    data = b"".join([*chunks, blocks.END_OF_TAR])
    storage.publish(storage.join(dest, place.name), data)
    entry = ShardEntry(
        name=place.name,
        group=group,
        drawings=sum(entry.drawings for entry in entries),
        bytes=len(data),
        crc32c=storage.crc32c(data),
        blocks=tuple(entries),
    )
    return entry, sums


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


def finished_dataset(plan: Plan, dest: str, parts: dict[int, Part]) -> manifest.Manifest | None:
    """The manifest, if it is there and holds the shards of these parts of all groups."""
    if len(parts) < plan.groups:
        return None
    try:
        stored = manifest.read(dest)
    except RefusedError:
        return None  # none yet, or a damaged one: the merge writes it anew
    return stored if stored.splits == manifest.shards_of(parts) else None


def merge_if_complete(
    plan: Plan,
    source: Source,
    dest: str,
    parts: dict[int, Part] | None = None,
    progress: Progress = lambda _: None,
) -> manifest.Manifest | None:
    """Publish the manifest when every group is done; None when some are missing.

    Groups that read something else than what the source's own checksums vouch for are built
    again before.

    Args:
        plan: the dataset's.
        source: its source.
        dest: its folder.
        parts: what `finished_parts` has just given; None to look for them.
        progress: called with 1 for every file of the source that was checked.

    Raises:
        CorruptError: the source is not what its checksum says, or not the official one.
        StorageError: the store failed.
    """
    done = dict(finished_parts(plan, dest) if parts is None else parts)
    if len(done) < plan.groups:
        return None
    files, crcs = integrity.check(plan, source, [done[g] for g in range(plan.groups)], progress)
    wrong = [g for g, true in enumerate(crcs) if [r.crc32c for r in done[g].ranges] != true]
    if wrong:
        print(f"source: building {len(wrong)} of {plan.groups} groups again", file=sys.stderr)
    memory = Scratch()
    for group in wrong:
        done[group] = build_group(plan, group, source, dest, memory, true_crcs=crcs[group])
    merged = manifest.merge(plan, done, source.url, files)
    storage.publish(storage.join(dest, manifest.NAME), manifest.to_json(merged))
    for folder in ("", *SPLITS, "parts"):
        storage.remove_temporary_files(storage.join(dest, folder))
    return merged


_worker: tuple[Plan, Source, str, Scratch] | None = None


def _start_worker(plan: Plan, source: Source, dest: str) -> None:
    global _worker
    process.survive_lost_output()
    process.die_with_parent()
    gc.freeze()  # what was imported stays: collections need not look at it again and again
    _worker = (plan, source, dest, Scratch())


def _build_in_worker(group: int) -> int:
    assert _worker is not None, "the pool starts every worker with _start_worker"
    plan, source, dest, memory = _worker
    build_group(plan, group, source, dest, memory)
    return sum(plan.split_sizes[group])


def build(
    plan: Plan, groups: list[int], source: Source, dest: str, processes: int, progress: Progress
) -> None:
    """Build groups in a pool of local processes, or in this one when that is enough."""
    if processes <= 1 or len(groups) <= 1:
        memory = Scratch()
        with process.manual_garbage_collection():  # an automatic one would traverse every import
            for group in groups:
                build_group(plan, group, source, dest, memory, progress)
                process.collect_garbage()
        return
    # spawn: a forked child of a process with gcsfs threads can hang.
    with ProcessPoolExecutor(
        min(processes, len(groups)), get_context("spawn"), _start_worker, (plan, source, dest)
    ) as pool:
        for drawings in pool.map(_build_in_worker, groups):
            progress(drawings)
