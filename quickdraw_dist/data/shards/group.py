"""Read the drawings of a group from their source, and divide those of a shard into blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.base.storage import Scratch
from quickdraw_dist.data.drawings.drawing import PIXELS, SIDE, Drawings, Source, is_blank
from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.shards import integrity
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.shards.plan import Plan
from quickdraw_dist.data.shards.schema import RangeRead


def read_rows(
    plan: Plan,
    group: int,
    source: Source,
    memory: Scratch,
    true_crcs: Sequence[int] | None = None,
) -> tuple[Drawings, tuple[RangeRead, ...]]:
    """Return a group's drawings, class after class, and the size and checksum of every range read.
    Bitmaps lie in `memory`."""
    ranges = plan.ranges(group)
    ends = np.cumsum([stop - start for start, stop in ranges])
    size = int(ends[-1]) * PIXELS if source.content == "bitmaps" else 0
    pixels = np.frombuffer(memory.view(size), np.uint8).reshape(-1, SIDE, SIDE)

    def fetch(label: int) -> tuple[RangeRead, Strokes | None]:
        start, stop = ranges[label]
        true_crc = None if true_crcs is None else true_crcs[label]
        drawings, crc = integrity.read(source, label, start, stop, true_crc)
        blank = int(np.count_nonzero(is_blank(drawings)))
        first, end = source.span(label, start, stop)
        read = RangeRead(bytes=end - first, crc32c=crc, blank=blank)
        if isinstance(drawings, Strokes):
            return read, drawings
        pixels[ends[label] - len(drawings) : ends[label]] = drawings
        return read, None

    with ThreadPoolExecutor(integrity.READERS) as pool:
        reads, strokes = zip(*pool.map(fetch, range(len(ranges))), strict=True)
    return (Strokes.concatenate(strokes) if source.content == "strokes" else pixels), reads


def make_blocks(
    members: NDArray[np.int64],
    size: int,
    drawings: Drawings,
    labels: NDArray[np.uint16],
    rows: NDArray[np.uint32],
) -> Iterator[Block]:
    """Yield a shard's blocks; each overwrites the pixels of the one before."""
    if isinstance(drawings, Strokes):  # gathered at once: what it costs follows from the group
        shard = Block(drawings.take(members), labels[members], rows[members])
        for start in range(0, len(members), size):
            yield shard.slice(start, min(start + size, len(members)))
        return
    buffer = np.empty((size, SIDE, SIDE), np.uint8)
    for start in range(0, len(members), size):
        piece = members[start : start + size]
        # 'clip' spares a copy; there is nothing to clip.
        pixels = np.take(drawings, piece, axis=0, out=buffer[: len(piece)], mode="clip")
        yield Block(pixels, labels[piece], rows[piece])


def replace_rows(drawings: Drawings, first: int, rows: Drawings) -> Drawings:
    """Return a group's drawings with `rows` in the place of as many from `first` on; pixels are
    written in place."""
    if isinstance(drawings, Strokes):
        assert isinstance(rows, Strokes)
        after = drawings.slice(first + len(rows), len(drawings))
        return Strokes.concatenate([drawings.slice(0, first), rows, after])
    drawings[first : first + len(rows)] = np.asarray(rows)
    return drawings
