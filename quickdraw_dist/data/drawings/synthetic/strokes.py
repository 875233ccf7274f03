"""Make synthetic drawings as pen strokes, simplified as the official ones: 0 to 255, y down.

A drawing of strokes follows from (seed, label, row) alone, as its bitmap does. Both show the same
lines but for details: strokes have more points, rounded to whole units. A missing stroke is not
there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.base.hashing import Array64, key64, mix64, random64
from quickdraw_dist.data.drawings.strokes.arrays import RECOGNIZED, UNRECOGNIZED, Strokes, ends
from quickdraw_dist.data.drawings.synthetic.templates import distort, make_template, shown_strokes

# Drawings distorted at a time: a few MB of memory.
_CHUNK = 512

_SPACING_PX = 1.8
"""Gives the 38.4 segments per drawing that real drawings have, so that rehearsals carry their load;
the strokes are 4.1 instead of 5.1, and no drawing is nearly as long as the longest real ones."""

_LARGEST = 255
"""The largest coordinate of a drawing: its longer side goes from 0 to this."""

_RECOGNIZED_SHARE = 0.932
"""Of the real drawings that say it."""

_OF_RECOGNIZED = 1 << 32
"""Index, in a drawing's random stream, of the number that decides whether it was recognised."""

CHECKED_BYTES = 8
"""Bytes per drawing that `checked` returns."""


def draw_strokes(seed: int, label: int, start: int, stop: int) -> Strokes:
    """Return rows of a class; none is blank."""
    key = key64("drawings", seed, label)
    chunks = [
        _chunk(seed, label, random64(key, min(_CHUNK, stop - first), first))
        for first in range(start, stop, _CHUNK)
    ]
    return Strokes.concatenate([Strokes.from_lists([]), *chunks])


def _chunk(seed: int, label: int, keys: Array64) -> Strokes:
    """Return the drawings of these random streams, (n,) uint64."""
    template = make_template(seed, label, _SPACING_PX)
    points = distort(template, keys)
    low = points.min(axis=1, keepdims=True)  # (n, 1, 2); missing strokes lie on a drawn one
    extent = (points.max(axis=1, keepdims=True) - low).max(axis=2, keepdims=True)
    units = np.rint((points - low) * (np.float32(_LARGEST) / extent)).astype(np.uint8)
    shown = shown_strokes(template, keys)  # (n, strokes)
    drawn = units[shown[:, template.stroke]]  # (points, 2), drawing after drawing
    sizes = np.bincount(template.stroke).astype(np.uint16)
    chance = (mix64(keys ^ np.uint64(_OF_RECOGNIZED)) >> np.uint64(11)) * 2.0**-53
    return Strokes(
        np.ascontiguousarray(drawn[:, 0]),
        np.ascontiguousarray(drawn[:, 1]),
        np.broadcast_to(sizes, shown.shape)[shown],
        shown.sum(axis=1, dtype=np.uint16),
        np.where(chance < _RECOGNIZED_SHARE, RECOGNIZED, UNRECOGNIZED).astype(np.uint8),
    )


@dataclass(frozen=True)
class StrokePool:
    """Some drawings of one class. All rows are copies, moved by as much as 0 to 255 leaves free."""

    drawings: Strokes
    free: NDArray[np.uint64]  # (drawings, 2): how far each can move to the right and down, plus 1
    key: int

    def read(self, start: int, stop: int) -> Strokes:
        """Return rows of the class."""
        numbers = random64(self.key, stop - start, start)
        chosen = (numbers & np.uint64(0xFFFFFFFF)) % np.uint64(len(self.drawings))
        copies = self.drawings.take(chosen.astype(np.int64))
        points = np.diff(copies.first_points())
        sixteen = np.uint64(16)
        for values, bits, free in (
            (copies.x, numbers >> np.uint64(48), self.free[chosen, 0]),
            (copies.y, numbers >> np.uint64(32) & np.uint64(0xFFFF), self.free[chosen, 1]),
        ):
            values += np.repeat((bits * free >> sixteen).astype(np.uint8), points)
        return copies


@lru_cache(maxsize=512)
def stroke_pool(seed: int, label: int, count: int) -> StrokePool:
    """Return the pool of a class, its first `count` drawings."""
    drawings = draw_strokes(seed, label, 0, count)
    first = drawings.first_points()[:-1]
    largest = [np.maximum.reduceat(values, first) for values in (drawings.x, drawings.y)]
    free = _LARGEST + 1 - np.stack(largest, axis=-1).astype(np.uint64)
    return StrokePool(drawings, free, key64("pool", seed, label))


def checked(drawings: Strokes) -> bytes:
    """Return what a checksum of drawings covers: `CHECKED_BYTES` of each, made from all it has.

    One size per drawing gives every row a position, which no file gives it.
    """
    first = drawings.first_points()
    words = drawings.x.astype(np.uint32) | drawings.y.astype(np.uint32) << 8
    words[ends(drawings.points)[1:] - 1] |= 1 << 16  # where strokes end
    before = np.repeat(first[:-1].astype(np.uint32), np.diff(first))
    words *= np.arange(1, len(words) + 1, dtype=np.uint32) - before  # 1, 2, 3 ... in each
    facts = np.empty((len(drawings), 2), "<u4")
    if len(drawings):
        facts[:, 0] = np.add.reduceat(words, first[:-1])
        facts[:, 1] = drawings.strokes | drawings.recognized.astype(np.uint32) << 16
    return facts.tobytes()
