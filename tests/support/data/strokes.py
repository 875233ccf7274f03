"""Drawings as pen strokes for tests: any, and as many as wanted."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from quickdraw_dist.base.hashing import key64, random64
from quickdraw_dist.data.drawings.strokes.arrays import Strokes

_STROKE = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=1, max_size=40
).map(lambda points: tuple(zip(*points, strict=True)))


def drawings(least: int = 1, most: int = 5) -> st.SearchStrategy:
    """Lists of drawings of up to four strokes, dots and blank ones among them."""
    return st.lists(st.lists(_STROKE, max_size=4), min_size=least, max_size=most)


def random_strokes(count: int, *key: object) -> Strokes:
    """Return drawings that follow from `key` alone: 0 to 6 strokes of 2 to 40 points, of which one
    drawing in 50 has ten times as many."""
    values = random64(key64("strokes", *key), 2 * count)
    strokes = (values[:count] % 7).astype(np.uint16)
    strokes[values[count:] % 50 == 0] *= 10
    points = (random64(key64("points", *key), int(strokes.sum())) % 39 + 2).astype(np.uint16)
    xy = random64(key64("xy", *key), int(points.sum()))
    recognized = (values[count:] >> 32) % 3
    return Strokes(
        (xy & 255).astype(np.uint8),
        (xy >> 8 & 255).astype(np.uint8),
        points,
        strokes,
        recognized.astype(np.uint8),
    )
