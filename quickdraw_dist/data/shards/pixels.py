"""Mean and standard deviation of a dataset's pixels, by which the network's input is normalised.

Strokes have the pixels of their raster, of a sample: it depends on nothing but the block, so any
worker writes the same sums.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.data.drawings import raster
from quickdraw_dist.data.drawings.drawing import PIXELS, Content, Drawings
from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.shards.schema import ShardEntry

STROKES_SAMPLED = 16
"""One of this many drawings of a block of strokes is rendered, its first among them."""


def pixel_sums(drawings: Drawings) -> NDArray[np.int64]:
    """Return the sum of the pixels of a block and the sum of their squares, (2,)."""
    if isinstance(drawings, Strokes):
        drawings = raster.plain(drawings.take(np.arange(0, len(drawings), STROKES_SAMPLED)))
    # Even the squares of a quarter of a drawing sum to less than 2^24: exact in float32,
    # whatever order BLAS adds in. In slices that stay in the processor's cache.
    quarters, sums = drawings.reshape(-1, PIXELS // 4), np.zeros(2)
    ones = np.ones(PIXELS // 4, np.float32)
    for at in range(0, len(quarters), 1024):
        values = quarters[at : at + 1024].astype(np.float32)
        for n, of_quarters in enumerate((np.vecdot(values, ones), np.vecdot(values, values))):
            sums[n] += of_quarters.sum(dtype=np.float64)
    return sums.astype(np.int64)


def summed_drawings(shards: Iterable[ShardEntry], content: Content) -> int:
    """Return how many drawings of some shards `pixel_sums` has counted."""
    step = 1 if content == "bitmaps" else STROKES_SAMPLED
    return sum(-(-block.drawings // step) for shard in shards for block in shard.blocks)


def normalisation(pixel_sum: int, pixel_square_sum: int, drawings: int) -> tuple[float, float]:
    """Return mean and standard deviation of pixels on a scale of 0 to 1, from sums of 0 to 255."""
    pixels = max(drawings, 1) * PIXELS
    mean = pixel_sum / pixels
    return mean / 255, (pixel_square_sum / pixels - mean**2) ** 0.5 / 255
