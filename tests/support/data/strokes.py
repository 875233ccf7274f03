"""Drawings as pen strokes for tests: any, and as many as wanted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from hypothesis import strategies as st

from quickdraw_dist.base.hashing import key64, random64
from quickdraw_dist.base.storage import crc32c
from quickdraw_dist.data.drawings.drawing import Rows
from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.drawings.strokes.tiles import TilesPerDrawing, pack
from quickdraw_dist.data.shards.schema import Manifest
from quickdraw_dist.data.stream.batch import StrokeBatch

_STROKE = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=1, max_size=40
).map(lambda points: tuple(zip(*points, strict=True)))


def drawings(least: int = 1, most: int = 5) -> st.SearchStrategy:
    """Lists of drawings of up to four strokes, dots and blank ones among them."""
    return st.lists(st.lists(_STROKE, max_size=4), min_size=least, max_size=most)


def random_strokes(count: int, *key: object, blank: bool = True) -> Strokes:
    """Return drawings that follow from `key` alone: up to 6 strokes of 2 to 40 points, of which one
    drawing in 50 has ten times as many; some without any, if `blank`."""
    values = random64(key64("strokes", *key), 2 * count)
    strokes = (values[:count] % 6 + 1 if not blank else values[:count] % 7).astype(np.uint16)
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


@dataclass(frozen=True)
class RandomStrokes:
    """A source of random strokes, like `synthetic:` without files."""

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    url = "random"
    content = "strokes"
    identity = "random"

    def file_url(self, label: int) -> str:
        return self.url

    def header(self, label: int) -> bytes:
        return b""

    def checksum(self, label: int) -> None:
        return None

    @cache  # noqa: B019 a source lives as long as the tests
    def of_class(self, label: int) -> Strokes:
        return random_strokes(self.counts[label], self.classes[label], blank=False)

    def span(self, label: int, start: int, stop: int) -> tuple[int, int]:
        first = self.of_class(label).first_points()
        return int(first[start]), int(first[stop])

    def read(self, label: int, start: int, stop: int) -> Rows:
        strokes = self.of_class(label).slice(start, stop)
        return Rows(strokes, crc32c(np.ascontiguousarray(strokes.x).data))
