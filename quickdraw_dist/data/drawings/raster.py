"""Draw pen strokes on 28x28 pixels: exactly as the official bitmaps, or by the plain rule.

The official bitmaps were drawn with cairo: `official` gives the same bytes. The plain rule takes
the ink of a pixel from the distance d of its centre to the nearest line, clamp(0.5 + r - d) with r
half a line's width, in pixels; on 8,600 real drawings it differs from cairo by 1.77 of 255 on
average. Networks that train on strokes draw by it, and so does the synthetic source.

Both put simplified strokes on a square of 304 units: a drawing's 256 units are centred within
margins of 24, and a line is 16 wide, with round caps and joins.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.base.errors import RefusedError, flag
from quickdraw_dist.base.geometry import FRAME, LINE_WIDTH, MARGIN
from quickdraw_dist.data.drawings.drawing import PIXELS, SIDE
from quickdraw_dist.data.drawings.strokes.arrays import Strokes

LINE_WIDTH_PX = LINE_WIDTH * SIDE / FRAME
"""Width of a line: 1.4737 pixels."""

# A pixel whose centre is nearer to the line than this has ink in it: half a line and half a pixel.
_REACH_PX = np.float32(LINE_WIDTH_PX / 2 + 0.5)

# A squared distance at which there is no ink.
_FAR = np.float32(SIDE * SIDE)

# A patch of pixels is a multiple of this wide and high: few shapes, and few pixels in vain. 3 was
# fastest of 1 to 4, for short segments of synthetic drawings and for the longer ones of real ones.
_PATCH = 3

# Pairs of a pixel and a segment computed at a time: their arrays stay in the processor's cache.
_PAIRS = 1 << 15

Coordinates = NDArray[np.float64]


def official(strokes: Strokes) -> NDArray[np.uint8]:
    """Draw simplified strokes with cairo, equal byte for byte to the official bitmaps.

    Returns:
        (n, 28, 28) uint8. A drawing without strokes is blank.

    Raises:
        RefusedError: cairocffi or the cairo library is not installed.
    """
    cairo = _cairo()
    surface = cairo.ImageSurface(cairo.FORMAT_ARGB32, SIDE, SIDE)
    argb = np.frombuffer(surface.get_data(), np.uint8).reshape(SIDE, SIDE, 4)
    pen = cairo.Context(surface)
    pen.set_antialias(cairo.ANTIALIAS_BEST)
    pen.set_line_cap(cairo.LINE_CAP_ROUND)
    pen.set_line_join(cairo.LINE_JOIN_ROUND)
    pen.set_line_width(LINE_WIDTH)
    pen.scale(SIDE / FRAME, SIDE / FRAME)
    pen.translate(MARGIN, MARGIN)
    drawings = np.empty((len(strokes), SIDE, SIDE), np.uint8)
    lines = _lines(strokes)
    for drawing, count in zip(drawings, strokes.strokes.tolist(), strict=True):
        pen.set_source_rgb(0, 0, 0)
        pen.paint()
        pen.set_source_rgb(1, 1, 1)
        for _ in range(count):
            points = next(lines)
            pen.move_to(*points[0])
            for x, y in points:  # the first one, too: a line to itself is a dot
                pen.line_to(x, y)
            pen.stroke()
        surface.flush()
        drawing[:] = argb[:, :, 0]
    return drawings


def _cairo() -> ModuleType:
    """Return cairocffi, which is optional and loads the cairo library when it is imported.

    Raises:
        RefusedError: one of the two is not installed.
    """
    try:
        import cairocffi
    except (ImportError, OSError) as error:  # OSError: the library
        problem = f"the official bitmaps of strokes are drawn with cairo, which is missing: {error}"
        remedy = (
            "Run pip install 'quickdraw-dist[strokes]' and apt-get install libcairo2, or use "
            + flag("shard.content", "strokes")
        )
        raise RefusedError(flag("shard.content"), "bitmaps", problem, remedy) from None
    module: ModuleType = cairocffi
    return module


def _lines(strokes: Strokes) -> Iterator[list[tuple[float, float]]]:
    """Yield the centred points of every stroke of every drawing."""
    x, y = (values.tolist() for values in centred(strokes))
    points = list(zip(x, y, strict=True))
    start = 0
    for count in strokes.points.tolist():
        yield points[start : start + count]
        start += count


def centred(strokes: Strokes) -> tuple[Coordinates, Coordinates]:
    """Return x and y of all points, each (P,), with (256 - maximum) / 2 of its drawing added."""
    first = strokes.first_points()
    counts = np.diff(first)
    inked = first[:-1][counts > 0]

    def centre(values: NDArray[np.uint8]) -> Coordinates:
        largest = np.maximum.reduceat(values, inked).astype(np.float64)
        return values.astype(np.float64) + np.repeat((256 - largest) / 2, counts[counts > 0])

    if not len(inked):
        return np.empty(0), np.empty(0)
    return centre(strokes.x), centre(strokes.y)


def plain(strokes: Strokes) -> NDArray[np.uint8]:
    """Draw simplified strokes by the plain rule, in the official geometry.

    Returns:
        (n, 28, 28) uint8. A drawing without strokes is blank.
    """
    points = (np.stack(centred(strokes), axis=-1) + MARGIN) * (SIDE / FRAME)
    starts = strokes.segment_starts()
    segments = np.concatenate([points[starts], points[starts + 1]], axis=-1).astype(np.float32)
    owners = np.searchsorted(strokes.first_points(), starts, side="right") - 1
    return draw_segments(segments, owners, len(strokes))


def draw_segments(
    segments: NDArray[np.float32], owners: NDArray[np.int64], count: int
) -> NDArray[np.uint8]:
    """Draw white lines with round ends on black by the plain rule.

    Args:
        segments: (s, 4) pixels: x1, y1, x2, y2, so far inside a drawing that its ink is, too. One
            of no length is a dot.
        owners: (s,) the drawing that each segment is part of, below `count`.
        count: number of drawings.

    Returns:
        (count, 28, 28) uint8. A drawing without segments is blank.
    """
    nearest = np.full(count * PIXELS, _FAR, np.float32)
    half = np.float32(0.5)
    start, end = segments[:, :2], segments[:, 2:]
    first = np.floor(np.minimum(start, end) - _REACH_PX + half).astype(np.int64)  # (s, 2): x, y
    last = np.floor(np.maximum(start, end) + _REACH_PX - half).astype(np.int64)
    sizes = np.minimum(-(-(last - first + 1) // _PATCH) * _PATCH, SIDE)
    corners = np.minimum(first, SIDE - sizes)
    for some, (width, height) in _by_shape(sizes):
        pixels, squared = _distances(segments[some], corners[some], width, height)
        pixels += owners[some, None, None] * PIXELS
        np.minimum.at(nearest, pixels.ravel(), squared.ravel())
    ink = np.clip(_REACH_PX - np.sqrt(nearest), np.float32(0), np.float32(1))
    levels = (ink * np.float32(255) + half).astype(np.uint8)
    return levels.reshape(count, SIDE, SIDE)


def _by_shape(sizes: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], tuple[int, int]]]:
    """Yield the indices of segments whose patches, (s, 2) pixels, have one size, and that size."""
    shapes = sizes[:, 0] * (SIDE + 1) + sizes[:, 1]
    order = np.argsort(shapes, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(shapes[order])) + 1):
        if len(group):
            width, height = sizes[group[0]].tolist()
            at_once = _PAIRS // (width * height)
            for start in range(0, len(group), at_once):
                yield group[start : start + at_once], (width, height)


def _distances(
    segments: NDArray[np.float32], corner: NDArray[np.int64], width: int, height: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the pixels of one patch per segment, and how far their centres are from it.

    A segment is mostly short, so only a patch of pixels around it is computed.

    Args:
        segments: (s, 4) pixels.
        corner: (s, 2) column and row of the upper left pixel of each patch.
        width: pixels of all patches, in x.
        height: pixels of all patches, in y.

    Returns:
        Indices of the pixels in a drawing's 784, and squared distances: each (s, height, width).
    """
    half = np.float32(0.5)
    columns = corner[:, :1] + np.arange(width)  # (s, width)
    rows = corner[:, 1:] + np.arange(height)  # (s, height)
    along = segments[:, 2:] - segments[:, :2]
    along_x, along_y = along[:, :1, None], along[:, 1:, None]  # (s, 1, 1)
    squared = along_x * along_x + along_y * along_y
    squared[squared == 0] = 1  # a dot: `nearby` is 0
    from_x = (columns.astype(np.float32) + half - segments[:, :1])[:, None, :]  # (s, 1, width)
    from_y = (rows.astype(np.float32) + half - segments[:, 1:2])[:, :, None]  # (s, height, 1)
    nearby = from_x * (along_x / squared) + from_y * (along_y / squared)  # (s, height, width)
    np.clip(nearby, np.float32(0), np.float32(1), out=nearby)
    off_x = from_x - nearby * along_x
    off_y = from_y - nearby * along_y
    off_x *= off_x
    off_y *= off_y
    off_x += off_y
    return (rows * SIDE)[:, :, None] + columns[:, None, :], off_x
