"""Damaged datasets whose checksums fit the damage: only the check under test can find it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from quickdraw_dist.base import storage
from quickdraw_dist.data.drawings.drawing import Drawings, Source
from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.drawings.strokes.totals import Totals
from quickdraw_dist.data.shards import blocks, manifest
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.shards.members import END_OF_TAR
from quickdraw_dist.data.shards.schema import BlockEntry, ShardEntry, digest
from quickdraw_dist.data.verify import find_problems
from tests.support.data.datasets import Dataset, take

NORMALISATION = "train: pixels have mean "
"""What is reported, too, when pixels of the training split are others or could not be read."""


def found(made: Dataset, source: Source | None = None) -> list[str]:
    """All problems of the dataset as it is on the disk now."""
    return list(find_problems(made.folder, manifest.read_unchecked(made.folder), source))


def read_blocks(made: Dataset, shard: ShardEntry) -> list[Block]:
    """The blocks of a shard, as arrays that may be written to."""
    data = (Path(made.folder) / shard.name).read_bytes()
    read = [blocks.decode(data[b.offset : b.offset + b.size], b.drawings) for b in shard.blocks]
    return [
        Block(take(b.drawings, np.arange(len(b.rows))), b.labels.copy(), b.rows.copy())
        for b in read
    ]


def alter(block: Block, at: int) -> None:
    """Change one pixel of a drawing, or one coordinate of its first point."""
    if isinstance(block.drawings, Strokes):
        block.drawings.x[block.drawings.first_points()[at]] ^= 1
    else:
        block.drawings[at, 13, 14] ^= 255


def put(contents: list[Block], number: int, at: int, drawing: Drawings) -> None:
    """Make `drawing`, (1,) or its strokes, the one at an index of a block."""
    block = contents[number]
    if isinstance(block.drawings, Strokes):
        before, after = block.drawings.slice(0, at), block.drawings.slice(at + 1, len(block.rows))
        joined = Strokes.concatenate([before, drawing, after])
        contents[number] = Block(joined, block.labels, block.rows)
    else:
        block.drawings[at] = drawing[0]


def exact(problems: list[str]) -> list[str]:
    """Problems without that of the normalisation, which strokes have of a sample only."""
    return [line for line in problems if not line.startswith(NORMALISATION)]


def publish(made: Dataset, entries: dict[str, ShardEntry], **changes: object) -> None:
    """The manifest with other entries for some shards, by name, and a digest that fits."""
    stored = manifest.read_unchecked(made.folder)
    splits = {
        split: tuple(entries.get(shard.name, shard) for shard in shards)
        for split, shards in stored.splits.items()
    }
    fields: dict[str, object] = {
        "splits": splits,
        "digest": digest(stored.classes, splits),
    }
    changed = stored.model_copy(update=fields | changes)
    storage.publish(storage.join(made.folder, manifest.NAME), manifest.to_json(changed))


def write_blocks(made: Dataset, shard: ShardEntry, contents: Sequence[Block]) -> None:
    """Write a shard of these blocks, and checksums and offsets that fit it."""
    number, entries, data = int(Path(shard.name).stem[-6:]), [], b""
    for at, block in enumerate(contents):
        if made.manifest.settings.layout == "per_drawing":
            piece = blocks.encode_per_drawing(block)
        else:
            compression = made.manifest.settings.compression
            piece = blocks.encode(block, f"{number:06d}-{at:04d}", compression)
        entries.append(BlockEntry(len(data), len(piece), len(block.rows), block.crc))
        data += piece
    totals = Totals.add(block.totals for block in contents)
    write_bytes(made, shard, data + END_OF_TAR, blocks=tuple(entries), **totals._asdict())


def write_bytes(made: Dataset, shard: ShardEntry, data: bytes, **changes: object) -> None:
    """Write a shard's file, and its length and checksum into the manifest, and other changes."""
    (Path(made.folder) / shard.name).write_bytes(data)
    changes |= {"bytes": len(data), "crc32c": storage.crc32c(data)}
    publish(made, {shard.name: shard.model_copy(update=changes)})


def find(contents: Sequence[Block], wanted: Callable[[int, int], bool]) -> tuple[int, int]:
    """The first drawing whose label and row are wanted: its block's number and its index there."""
    for number, block in enumerate(contents):
        for at, (label, row) in enumerate(zip(block.labels, block.rows, strict=True)):
            if wanted(int(label), int(row)):
                return number, at
    raise AssertionError("no such drawing in this shard")
