"""Cut drawings into tiles of 16 segments: what the ring holds and the device renders.

A segment joins two consecutive points of a stroke: x1, y1, x2, y2, one byte each. A drawing has as
many tiles as its segments need; the rest of its last tile repeats its last segment, which changes
no picture. So nothing is cut, and a batch is rows of one size (`models/stroke_raster.py` says how
they become pictures).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.data.drawings.strokes.arrays import Strokes, ends, ragged

TILE = 16
"""Segments per tile."""

TILE_BYTES = 4 * TILE

_ROUNDED_TO = 64
_DEVIATIONS = 6

_OWN = np.tri(TILE + 1, TILE, -1, np.bool_)
"""Row k: which segments of a tile are a drawing's own, if k of them are."""


@dataclass(frozen=True)
class Tiles:
    """The segments of n drawings in T tiles, drawing after drawing in the order of drawing."""

    segments: NDArray[np.uint8]  # (T, 16, 4): x1, y1, x2, y2
    first: NDArray[np.int64]  # (n + 1,): where each drawing's tiles begin; the last one is T
    counts: NDArray[np.int32]  # (n,): segments per drawing, without repetitions
    recognized: NDArray[np.uint8]  # (n,): as in `Strokes`

    def __len__(self) -> int:
        """Return the number of drawings."""
        return len(self.counts)

    def slice(self, start: int, stop: int) -> Tiles:
        """Return drawings `start` to `stop`, their segments without a copy."""
        first = self.first[start : stop + 1]
        own = slice(start, stop)
        segments = self.segments[first[0] : first[-1]]
        return Tiles(segments, first - first[0], self.counts[own], self.recognized[own])

    def take(self, drawings: NDArray[np.integer]) -> Tiles:
        """Return a copy of these drawings, (k,) indices, in their order."""
        counts = self.counts[drawings]
        first = self.first[drawings]
        tiles = self.first[drawings + 1] - first
        # Three times as fast as an index: a tile is copied as a whole.
        segments = np.take(self.segments, ragged(first, tiles), axis=0)
        return Tiles(segments, ends(tiles), counts, self.recognized[drawings])

    @staticmethod
    def concatenate(several: Sequence[Tiles]) -> Tiles:
        """Return the drawings of all, in order."""
        counts = np.concatenate([tiles.counts for tiles in several])
        return Tiles(
            np.concatenate([tiles.segments for tiles in several]),
            ends(tile_counts(counts)),
            counts,
            np.concatenate([tiles.recognized for tiles in several]),
        )


def tile_counts(segments: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the tiles that drawings of these numbers of segments take."""
    return -(-segments.astype(np.int64) // TILE)


def pack(strokes: Strokes) -> Tiles:
    """Return the segments of drawings as tiles; nothing refers to the memory of `strokes`."""
    points = strokes.x.astype("<u2")
    points |= strokes.y.astype("<u2") << 8
    joined = np.ones(len(points), np.bool_)
    joined[ends(strokes.points)[1:] - 1] = False  # the last point of a stroke begins no segment
    pairs = points[:-1].astype("<u4")
    pairs |= points[1:].astype("<u4") << 16
    segments = np.compress(joined[:-1], pairs)  # twice as fast as an index
    counts = (np.diff(strokes.first_points()) - strokes.strokes).astype(np.int32)
    first = ends(tile_counts(counts))
    padded = np.empty((first[-1], TILE), "<u4")
    own = np.ones(padded.shape, np.bool_)
    # Only the last tile of a drawing is not full: it repeats the last segment.
    inked = counts > 0
    last_tiles = first[1:][inked] - 1
    padded[last_tiles] = segments[ends(counts)[1:][inked] - 1][:, None]
    own[last_tiles] = _OWN[(counts[inked] - 1) % TILE + 1]
    padded[own] = segments
    rows = padded.view(np.uint8).reshape(-1, TILE, 4)
    return Tiles(rows, first, counts, strokes.recognized.copy())


class TilesPerDrawing(NamedTuple):
    """Mean and standard deviation over the drawings of a dataset: the size of a batch follows."""

    mean: float
    sd: float

    @classmethod
    def of_sums(cls, tiles: int, tile_squares: int, drawings: int) -> TilesPerDrawing:
        """Return mean and standard deviation from the sums of the tiles, and of their squares, over
        some drawings."""
        mean = tiles / max(drawings, 1)
        return cls(mean, math.sqrt(max(tile_squares / max(drawings, 1) - mean**2, 0.0)))

    def capacity(self, drawings: int, needed: int = 0) -> int:
        """Return the tiles of a batch: the mean and six standard deviations of the sum, which one
        batch in a billion exceeds; doubled as often as a batch that needs more needs it.

        Batches of one size have one shape, so that a compiled step serves all of them.
        """
        most = drawings * self.mean + _DEVIATIONS * self.sd * math.sqrt(drawings)
        tiles = math.ceil(most / _ROUNDED_TO) * _ROUNDED_TO
        while tiles < needed:
            tiles = max(2 * tiles, _ROUNDED_TO)
        return tiles
