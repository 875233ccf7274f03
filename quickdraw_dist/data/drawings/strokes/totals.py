"""Count what memory and batches of many drawings depend on, before any of them is read again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.drawings.strokes.tiles import tile_counts


class Totals(NamedTuple):
    """Sizes of some drawings in all; zeros for bitmaps."""

    strokes: int = 0
    points: int = 0
    tiles: int = 0
    tile_squares: int = 0
    """Sum over the drawings of the square of their tiles: the deviation of a batch follows."""

    @staticmethod
    def of(strokes: Strokes) -> Totals:
        """Return the totals of some drawings."""
        tiles = tile_counts(np.diff(strokes.first_points()) - strokes.strokes)
        return Totals(len(strokes.points), len(strokes.x), int(tiles.sum()), int(tiles @ tiles))

    @staticmethod
    def add(several: Iterable[Totals]) -> Totals:
        """Return the totals of several sets of drawings together."""
        return Totals(*map(sum, zip(*several, strict=True)))
