"""Build a dataset group by group; part files record the groups that are done, a merge ends it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.process.garbage import collect_garbage, manual_garbage_collection
from quickdraw_dist.base.process.output import survive_lost_output
from quickdraw_dist.base.process.parent import Inherited, die_with_parent
from quickdraw_dist.base.storage import Scratch
from quickdraw_dist.data.drawings.drawing import Source
from quickdraw_dist.data.drawings.strokes.totals import Totals
from quickdraw_dist.data.shards import blocks, integrity, manifest
from quickdraw_dist.data.shards.blocks import pixel_sums
from quickdraw_dist.data.shards.group import make_blocks, read_rows
from quickdraw_dist.data.shards.members import END_OF_TAR
from quickdraw_dist.data.shards.plan import SPLITS, Plan, PlannedShard
from quickdraw_dist.data.shards.schema import BlockEntry, Manifest, PartFile, ShardEntry

Progress = Callable[[int], object]
"""Called with the number of drawings or files just finished."""


def build_group(
    plan: Plan,
    group: int,
    source: Source,
    dest: str,
    memory: Scratch,
    progress: Progress = lambda _: None,
    true_crcs: Sequence[int] | None = None,
) -> PartFile:
    """Read a group's rows, publish its shards, then its part file.

    `memory` holds the pixels of bitmaps. `progress` is called with the drawings of every shard.
    `true_crcs` are the CRC-32C of the group's ranges, class by class, where they are known: a range
    that is read with another one is read again.

    Raises:
        CorruptError: the source is shorter than its header says, or never read as `true_crcs` say.
        StorageError: the store failed.
    """
    drawings, ranges = read_rows(plan, group, source, memory, true_crcs)
    labels, rows = plan.identities(group)
    shards: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
    per_class = {split: np.zeros(len(plan.classes), np.int64) for split in SPLITS}
    sums = np.zeros(2, np.int64)
    for shard in plan.shards(group):
        members = plan.members(group, shard)
        contents = make_blocks(members, plan.settings.block, drawings, labels, rows)
        entry, of_shard = _publish_shard(plan, group, shard, contents, dest)
        shards[shard.split].append(entry)
        per_class[shard.split] += np.bincount(labels[members], minlength=len(plan.classes))
        if shard.split == "train":
            sums += of_shard
        progress(len(members))
    part = PartFile(
        fingerprint=plan.fingerprint,
        group=group,
        shards={split: tuple(entries) for split, entries in shards.items()},
        per_class={split: tuple(int(n) for n in counts) for split, counts in per_class.items()},
        pixel_sum=int(sums[0]),
        pixel_square_sum=int(sums[1]),
        ranges=ranges,
    )
    storage.publish(storage.join(dest, manifest.part_file_name(group)), manifest.to_json(part))
    return part


def _publish_shard(
    plan: Plan, group: int, shard: PlannedShard, contents: Iterable[blocks.Block], dest: str
) -> tuple[ShardEntry, NDArray[np.int64]]:
    """Encode and publish one shard; return its entry and its pixel sums, (2,)."""
    chunks, entries, totals, offset = [], [], [], 0
    sums = np.zeros(2, np.int64)
    for number, block in enumerate(contents):
        if plan.settings.layout == "per_drawing":
            data = blocks.encode_per_drawing(block)
        else:
            key = f"{shard.number:06d}-{number:04d}"
            data = blocks.encode(block, key, plan.settings.compression)
        entries.append(BlockEntry(offset, len(data), len(block.labels), block.crc))
        totals.append(block.totals)
        chunks.append(data)
        offset += len(data)
        sums += pixel_sums(block.drawings)
    data = b"".join([*chunks, END_OF_TAR])
    storage.publish(storage.join(dest, shard.name), data)
    entry = ShardEntry(
        name=shard.name,
        group=group,
        drawings=sum(entry.drawings for entry in entries),
        bytes=len(data),
        crc32c=storage.crc32c(data),
        blocks=tuple(entries),
        **Totals.add(totals)._asdict(),
    )
    return entry, sums


def finished_groups(plan: Plan, dest: str) -> dict[int, PartFile]:
    """Return the part files of the groups that are done and whose shards are all stored, by group.

    Raises:
        RefusedError: a part file is of another plan; the two must not mix in one folder.
    """
    stored = {
        f"{split}/{name}": size
        for split in SPLITS
        for name, size in manifest.stored_sizes(storage.join(dest, split), ".tar").items()
    }
    done = {}
    for name in manifest.stored_sizes(storage.join(dest, "parts"), ".json"):
        url = storage.join(dest, "parts", name)
        try:
            part = PartFile.model_validate_json(storage.read(url))
        except ValidationError:
            continue  # damaged, or written by another release: the group is built again
        if part.fingerprint != plan.fingerprint:
            problem = "belongs to another dataset (other classes, counts or --shard settings)"
            raise RefusedError(url, None, problem, "Choose another DEST, or empty this one")
        shards = [shard for entries in part.shards.values() for shard in entries]
        if all(stored.get(shard.name) == shard.bytes for shard in shards):
            done[part.group] = part
    return done


def finished_dataset(plan: Plan, dest: str, parts: dict[int, PartFile]) -> Manifest | None:
    """Return the stored manifest if it lists the shards of these part files, one of every group."""
    if len(parts) < plan.groups:
        return None
    try:
        stored = manifest.read(dest)
    except RefusedError:
        return None  # none yet, or a damaged one: the merge writes another
    return stored if stored.splits == manifest.shards_of(parts) else None


def merge_if_complete(
    plan: Plan,
    source: Source,
    dest: str,
    parts: dict[int, PartFile] | None = None,
    progress: Progress = lambda _: None,
) -> Manifest | None:
    """Publish the manifest when every group is done; return None when some are missing.

    Groups that read other bytes than the source's own checksums confirm are built again first.

    Args:
        plan: the plan of the dataset.
        source: the drawings.
        dest: the folder of the dataset.
        parts: what `finished_groups` has just returned; None to list them here.
        progress: called with 1 for every file of the source that was checked.

    Raises:
        CorruptError: the source is not what its checksum says, or not the official one.
        RefusedError: the training drawings are all of one colour, or too many are blank.
        StorageError: the store failed.
    """
    done = dict(finished_groups(plan, dest) if parts is None else parts)
    if len(done) < plan.groups:
        return None
    files, crcs = integrity.check_source(
        plan, source, [done[g] for g in range(plan.groups)], progress
    )
    wrong = [g for g, true in enumerate(crcs) if [r.crc32c for r in done[g].ranges] != true]
    if wrong:
        print(f"source: building {len(wrong)} of {plan.groups} groups again", file=sys.stderr)
    memory = Scratch()
    for group in wrong:
        done[group] = build_group(plan, group, source, dest, memory, true_crcs=crcs[group])
    merged = manifest.merge(plan, done, source.url, files)
    integrity.check_blank(plan, source, [file.blank for file in merged.source_files])
    if not merged.pixel_std:
        problem = f"its {merged.drawings('train'):,} training drawings are all of one colour"
        raise RefusedError(source.url, None, problem, "Give a source of drawings to learn from")
    storage.publish(storage.join(dest, manifest.NAME), manifest.to_json(merged))
    for folder in ("", *SPLITS, "parts"):
        storage.remove_temporary_files(storage.join(dest, folder))
    return merged


_worker: tuple[Plan, Source, str, Scratch] | None = None


def _start_worker(work: Any) -> None:
    """Keep the plan, source and destination that `build` hands over as an `Inherited`."""
    global _worker
    survive_lost_output()
    die_with_parent()
    plan, source, dest = work
    _worker = (plan, source, dest, Scratch())


def _build_in_worker(group: int) -> tuple[int, dict[int, int]]:
    """Return the number of drawings built, and of blank ones by label."""
    assert _worker is not None, "the pool starts every worker with _start_worker"
    plan, source, dest, memory = _worker
    with manual_garbage_collection():
        part = build_group(plan, group, source, dest, memory)
    return int(plan.split_sizes[group].sum()), _blank(part)


def _blank(part: PartFile) -> dict[int, int]:
    """Return the blank drawings of a group by label, where there are any."""
    return {label: read.blank for label, read in enumerate(part.ranges) if read.blank}


def build(
    plan: Plan, groups: list[int], source: Source, dest: str, processes: int, progress: Progress
) -> None:
    """Build groups in a pool of local processes, or in this one where one is enough.

    Raises:
        BrokenProcessPool: a process of the pool died, at whatever moment.
        CorruptError: as `build_group`. StorageError: the store failed.
        RefusedError: too many of the drawings built so far are blank.
    """
    blank: Counter[int] = Counter()
    if processes <= 1 or len(groups) <= 1:
        memory = Scratch()
        with manual_garbage_collection():  # an automatic one would traverse every import
            for group in groups:
                blank.update(_blank(build_group(plan, group, source, dest, memory, progress)))
                integrity.check_blank(plan, source, blank)
                collect_garbage()
        return
    work = Inherited((plan, source, dest))
    # spawn: a forked child of a process with gcsfs threads can hang.
    pool = ProcessPoolExecutor(
        min(processes, len(groups)), get_context("spawn"), _start_worker, (work,)
    )
    try:
        for drawings, of_group in pool.map(_build_in_worker, groups):
            progress(drawings)
            blank.update(of_group)
            integrity.check_blank(plan, source, blank)
    except BrokenProcessPool:
        # Python 3.11's pool waits for ever for a worker that was being started when another died.
        for worker in active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
