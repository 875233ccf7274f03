"""Drawings as pen strokes for tests: any, and as many as wanted."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from quickdraw_dist.base.hashing import key64, random64
from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.drawings.strokes.tiles import TilesPerDrawing, pack
from quickdraw_dist.data.shards.schema import Manifest
from quickdraw_dist.data.stream.stroke_batch import StrokeBatch

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


def stroke_batch(strokes: Strokes) -> StrokeBatch:
    """Return drawings as a batch with tiles that are not used."""
    empty = StrokeBatch.allocate(len(strokes), TilesPerDrawing(5.0, 7.0), pin=False)
    return empty.filled([pack(strokes)])


def noise(content: str, start: int, stop: int, seed: int = 5) -> torch.Tensor | StrokeBatch:
    """Return drawings `start` to `stop` of a sequence that follows from the seed, as a batch."""
    if content == "strokes":
        return stroke_batch(random_strokes(stop, "noise", seed).slice(start, stop))
    generator = torch.Generator().manual_seed(seed)
    drawings = torch.randint(0, 256, (stop, 28, 28), dtype=torch.uint8, generator=generator)
    return drawings[start:stop]


def with_content(manifest: Manifest, content: str) -> Manifest:
    """Return a manifest that says that its drawings are strokes, or bitmaps: all that a learner
    reads of them."""
    settings = manifest.settings.model_copy(update={"content": content})
    return manifest.model_copy(update={"settings": settings})
