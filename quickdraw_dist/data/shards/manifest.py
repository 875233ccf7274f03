"""Describe a dataset: `manifest.json`, published last; without it there is no dataset."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping

import numpy as np
from pydantic import (
    ValidationError,
)

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError, RefusedError, one_line
from quickdraw_dist.data.drawings.classes import official_names
from quickdraw_dist.data.drawings.drawing import PIXELS, Content
from quickdraw_dist.data.shards.blocks import STROKES_SAMPLED
from quickdraw_dist.data.shards.consistency import find_contradictions
from quickdraw_dist.data.shards.plan import SPLITS, Plan
from quickdraw_dist.data.shards.schema import (
    FORMAT_VERSIONS,
    Manifest,
    PartFile,
    ShardEntry,
    SourceFile,
    digest,
)

NAME = "manifest.json"

_SHOWN = 3
"""Most contradictions in a message."""


def part_file_name(group: int) -> str:
    """Return the path of a group's part file below the dataset's folder."""
    return f"parts/group-{group:06d}.json"


def shards_of(parts: Mapping[int, PartFile]) -> dict[str, tuple[ShardEntry, ...]]:
    """Return the shards of each split, in order, from the part files of all groups."""
    in_order = [parts[group] for group in sorted(parts)]
    return {
        split: tuple(shard for part in in_order for shard in part.shards[split]) for split in SPLITS
    }


def merge(
    plan: Plan, parts: Mapping[int, PartFile], source: str, source_files: tuple[SourceFile, ...]
) -> Manifest:
    """Return the manifest of a plan from the part files of all groups: a pure function."""
    splits = shards_of(parts)
    ranges = zip(*(part.ranges for part in parts.values()), strict=True)
    blank = [sum(read.blank for read in of_class) for of_class in ranges]
    files = zip(source_files, blank, strict=True)
    counts = {split: [part.per_class[split] for part in parts.values()] for split in SPLITS}
    per_class = {split: tuple(np.sum(counts[split], axis=0).tolist()) for split in SPLITS}
    mean, std = normalisation(
        sum(part.pixel_sum for part in parts.values()),
        sum(part.pixel_square_sum for part in parts.values()),
        summed_drawings(splits["train"], plan.settings.content),
    )
    return Manifest(
        format_version=FORMAT_VERSIONS[plan.settings.content],
        classes=plan.classes,
        source=source,
        source_files=tuple(file.model_copy(update={"blank": n}) for file, n in files),
        settings=plan.settings,
        splits=splits,
        per_class=per_class,
        pixel_mean=mean,
        pixel_std=std,
        digest=digest(plan.classes, splits),
    )


def summed_drawings(shards: Iterable[ShardEntry], content: Content) -> int:
    """Return how many drawings of some shards `pixel_sums` has counted."""
    step = 1 if content == "bitmaps" else STROKES_SAMPLED
    return sum(-(-block.drawings // step) for shard in shards for block in shard.blocks)


def normalisation(pixel_sum: int, pixel_square_sum: int, drawings: int) -> tuple[float, float]:
    """Return mean and standard deviation of pixels on a scale of 0 to 1, from sums of 0 to 255."""
    pixels = max(drawings, 1) * PIXELS
    mean = pixel_sum / pixels
    return mean / 255, (pixel_square_sum / pixels - mean**2) ** 0.5 / 255


def read(folder: str) -> Manifest:
    """Return the manifest of a dataset in any layout.

    Raises:
        RefusedError: no dataset there, one of a newer format, or a damaged manifest.
        CorruptError: the manifest contradicts itself; it was changed after it was written.
    """
    dataset = read_unchecked(folder)
    check(dataset, folder)
    return dataset


def check(dataset: Manifest, folder: str) -> None:
    """Raise CorruptError if the manifest of the dataset in `folder` contradicts itself."""
    found = list(find_contradictions(dataset))
    if not found:
        return
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    problem = f"contradicts itself: {'; '.join([*found[:_SHOWN], *more])}"
    again = f"run again: make shard SOURCE={shlex.quote(dataset.source)} DEST={folder}"
    remedy = f"Restore the manifest from a copy of the dataset, or {again} (with the same settings)"
    raise CorruptError(storage.join(folder, NAME), None, problem, remedy, contradictions=found)


def read_unchecked(folder: str) -> Manifest:
    """Return the manifest of a dataset, though it may contradict itself.

    Raises:
        RefusedError: no dataset there, one of a newer format, or a damaged manifest.
    """
    url = storage.join(folder, NAME)
    remedy = f"Make one with: make shard DEST={folder}"
    try:
        text = storage.read(url)
    except (FileNotFoundError, NotADirectoryError):
        begun = stored_sizes(storage.join(folder, "parts"), ".json")
        problem = f"{'sharding has not finished' if begun else 'no dataset there'} (no {NAME})"
        raise RefusedError(folder, None, problem, remedy) from None
    try:
        version = json.loads(text)["format_version"]
        if version not in (known := FORMAT_VERSIONS.values()):
            problem = f"format version {version}; this release reads {', '.join(map(str, known))}"
            advice = "Update quickdraw-dist, or shard again"
            raise RefusedError(url, None, problem, advice, version=version)
        return Manifest.model_validate_json(text)
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(url, None, f"not a manifest: {one_line(error)}", remedy) from None


def read_trainable(folder: str) -> Manifest:
    """Return the manifest of a dataset in blocks, the layout that training and evaluation read.

    Raises:
        RefusedError: as `read`, or the layout is per_drawing.
    """
    dataset = read(folder)
    if dataset.settings.layout == "per_drawing":
        flags = "--stream.reader webdataset"
        if dataset.classes != official_names():  # the default
            flags += f" --stream.class_names {shlex.join(dataset.classes)}"
        problem = "--shard.layout per_drawing is an export for other readers, not for training"
        remedy = f"Use {flags}, or shard the source again without --shard.layout"
        raise RefusedError("--data", folder, problem, remedy)
    return dataset


def stored_sizes(folder: str, suffix: str) -> dict[str, int]:
    """Return the bytes of the files in a folder by name; none where there is no such folder."""
    try:
        return storage.sizes(folder, suffix)
    except (FileNotFoundError, NotADirectoryError):
        return {}


def to_json(stored: Manifest | PartFile) -> bytes:
    """Return the bytes to publish."""
    return (stored.model_dump_json() + "\n").encode()
