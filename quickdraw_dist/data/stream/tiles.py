"""Cut drawings into tiles of 16 segments: what the ring holds and the device renders.

A segment joins two consecutive points of a stroke: x1, y1, x2, y2, one byte each. A drawing has as
many tiles as its segments need; the rest of its last tile repeats its last segment, which changes
no picture. So nothing is cut, and a batch is rows of one size (`models/stroke_raster.py` says how
they become pictures).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.data.drawings.strokes.arrays import Strokes, ends, ragged

TILE = 16
"""Segments per tile."""

TILE_BYTES = 4 * TILE


@dataclass(frozen=True)
class Tiles:
    """The segments of n drawings in T tiles, drawing after drawing in the order of drawing."""

    segments: NDArray[np.uint8]  # (T, 16, 4): x1, y1, x2, y2
    first: NDArray[np.int64]  # (n + 1,): where each drawing's tiles begin; the last one is T
    counts: NDArray[np.int32]  # (n,): segments per drawing, without repetitions

    def __len__(self) -> int:
        """Return the number of drawings."""
        return len(self.counts)


def tile_counts(segments: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the tiles that drawings of these numbers of segments take."""
    return -(-segments.astype(np.int64) // TILE)


def pack(strokes: Strokes) -> Tiles:
    """Return the segments of drawings as tiles."""
    word = strokes.x.astype(np.uint32) | strokes.y.astype(np.uint32) << 8
    starts = strokes.segment_starts()
    segments = word[starts] | word[starts + 1] << 16
    counts = np.diff(strokes.first_points()) - strokes.strokes
    tiles = tile_counts(counts)
    first = ends(tiles)
    last = np.repeat(counts - 1, tiles * TILE)
    within = ragged(np.zeros(len(tiles), np.int64), tiles * TILE)
    source = np.minimum(within, last) + np.repeat(ends(counts)[:-1], tiles * TILE)
    padded = segments[source].astype("<u4")
    return Tiles(padded.view(np.uint8).reshape(-1, TILE, 4), first, counts.astype(np.int32))
