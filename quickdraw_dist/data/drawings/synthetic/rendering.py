"""Render shapes and lines as 28x28 drawings with numpy, in the geometry of the official bitmaps.

Google's simplified strokes have a long side of 255 units and are drawn on a square of 304 with a
round line 16 units wide, then shrunk to 28 pixels. The numbers below follow from that.

Only +, -, *, /, floor and sqrt touch a coordinate here. IEEE 754 rounds these exactly one way, so
a drawing has the same bytes on every processor, which sin() or a matrix product would not promise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.base.geometry import FRAME
from quickdraw_dist.data.drawings.drawing import SIDE
from quickdraw_dist.data.drawings.raster import draw_segments

Line = NDArray[np.float64]
"""One stroke of a template: (points, 2), x to the right, y down."""

Shape = Callable[[float, float], Line]
"""Makes a line from its proportions, two numbers in [0, 1)."""

Points = NDArray[np.float32]
"""The points of many drawings: (drawings, points, 2), x to the right, y down."""

LONG_SIDE_PX = 255 * SIDE / FRAME
"""Distance of the outermost points along the longer side: 23.487 pixels."""

# A turn sharper than 45 degrees is a corner; this is the cosine.
_CORNER = 0.7071

# Sines of 1/1024 turns, rounded far above the last bit, where mathematical libraries differ.
_TURN = 1024
_SINES = np.round(np.sin(np.arange(_TURN) * (2 * np.pi / _TURN)) * 2**24) / 2**24


def even(low: float, high: float, count: int) -> NDArray[np.float64]:
    """Return `count` evenly spaced numbers from low to high, both included."""
    return low + (high - low) * (np.arange(count) / (count - 1))


def circle(turns: NDArray[np.float64]) -> Line:
    """Return the points of the unit circle at these turns, clockwise from the right, (..., 2)."""
    index = np.floor(turns * _TURN + 0.5).astype(np.intp)
    return np.stack([_SINES[(index + _TURN // 4) % _TURN], _SINES[index % _TURN]], axis=-1)


def placed(shape: Line, turns: float, half: tuple[float, float], centre: Line) -> Line:
    """Return a shape stretched to these half sides, turned clockwise, and moved to its centre."""
    cos, sin = circle(np.array(turns))
    x, y = shape[:, 0] * half[0], shape[:, 1] * half[1]
    return np.stack([x * cos - y * sin, x * sin + y * cos], axis=-1) + centre


# Shapes: upright, about 1 from the middle to the ends; `a` and `b` in [0, 1) choose proportions.


def straight(a: float, b: float) -> Line:
    return np.array([(-1.0, 0.0), (1.0, 0.0)])


def arc(a: float, b: float) -> Line:
    return circle(even(0.6 - 0.2 * a, 0.9 + 0.2 * a, 33))


def ellipse(a: float, b: float) -> Line:
    return circle(even(0.75, 1.75, 33)) * (1, 0.6 + 0.4 * a)


def polygon(a: float, b: float) -> Line:
    corners = 3 + int(3 * b)
    first = 0.625 if corners == 4 else 0.75  # a side of a square, else a corner, is on top
    return circle(np.arange(corners + 1) / corners + first) * (1, 0.6 + 0.4 * a)


def zigzag(a: float, b: float) -> Line:
    corners, height = 4 + int(3 * b), 0.25 + 0.35 * a
    return np.stack([even(-1, 1, corners), height * (np.arange(corners) % 2 * 2.0 - 1)], axis=-1)


def wave(a: float, b: float) -> Line:
    height = circle(even(0, 1 + 1.2 * b, 41))[:, 1] * (0.25 + 0.25 * a)
    return np.stack([even(-1, 1, 41), height], axis=-1)


def spiral(a: float, b: float) -> Line:
    return circle(even(0, 1.4 + 0.8 * a, 49)) * even(0.1, 1, 49)[:, None]


def curve(a: float, b: float) -> Line:
    """Return a cubic Bezier curve from the left end to the right one."""
    t = even(0, 1, 33)
    u = 1 - t
    x = t * t * t - u * u * u + 1.8 * (u * t * t - u * u * t)
    y = 3 * u * t * (u * (2.6 * a - 1.3) + t * (2.6 * b - 1.3))
    return np.stack([x, y], axis=-1)


def leaf(a: float, b: float) -> Line:
    x = even(-1, 1, 17)
    upper = np.stack([x, (0.4 + 0.4 * a) * (x * x - 1)], axis=-1)
    return np.concatenate([upper, (upper * (1, -1))[-2::-1]])


def rotation(radians: Points) -> tuple[Points, Points]:
    """Return cosine and sine of nearly this angle, from the tangent of its half, not by sin()."""
    half = radians * np.float32(0.5)
    square = half * half
    return (1 - square) / (1 + square), 2 * half / (1 + square)


@dataclass(frozen=True)
class Segments:
    """Which points of a polyline are joined: point `tails[i]` with point `heads[i]`."""

    tails: NDArray[np.intp]  # (segments,)
    heads: NDArray[np.intp]  # (segments,)


def fit(points: Points) -> Points:
    """Scale and centre every drawing as the official bitmaps are.

    Args:
        points: (drawings, points, 2) float32, x and y in any unit, y down, not all equal.

    Returns:
        The points in pixels: their longer side is `LONG_SIDE_PX`, the middle of both sides is
        the middle of the drawing, (14, 14).
    """
    low, high = points.min(axis=1), points.max(axis=1)  # (drawings, 2)
    scale = np.float32(LONG_SIDE_PX) / (high - low).max(axis=1)
    middle = (low + high) * np.float32(0.5)
    centred = (points - middle[:, None, :]) * scale[:, None, None]
    return np.asarray(centred + np.float32(SIDE / 2), np.float32)


def arc_lengths(line: Line) -> NDArray[np.float64]:
    """Return the length of the line up to each of its points, (points,), in the line's unit."""
    steps = line[1:] - line[:-1]
    lengths = np.sqrt(steps[:, 0] * steps[:, 0] + steps[:, 1] * steps[:, 1])
    return np.concatenate([[0.0], np.cumsum(lengths)])


def scaled(strokes: Sequence[Line]) -> tuple[list[Line], float]:
    """Return the strokes of one template in pixels around (0, 0), and their total length.

    The longer side of all strokes is `LONG_SIDE_PX`.
    """
    points = np.concatenate(strokes)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = LONG_SIDE_PX / (high - low).max()
    in_pixels = [(stroke - (low + high) / 2) * scale for stroke in strokes]
    return in_pixels, float(sum(arc_lengths(stroke)[-1] for stroke in in_pixels))


def resample(line: Line, spacing_px: float) -> Line:
    """Return the line with evenly spaced points and its corners kept.

    Few points make few segments to render; even spacing makes segments of one size, which fit
    one patch of pixels.

    Args:
        line: (n, 2) pixels, n >= 2, no two neighbours equal.
        spacing_px: the largest distance between neighbours, along the line.

    Returns:
        (m, 2) pixels, m >= 2, from the first point to the last.
    """
    steps = line[1:] - line[:-1]
    travelled = arc_lengths(line)
    lengths = travelled[1:] - travelled[:-1]
    cosines = (steps[1:, 0] * steps[:-1, 0] + steps[1:, 1] * steps[:-1, 1]) / (
        lengths[1:] * lengths[:-1]
    )
    corners = [0, *(np.flatnonzero(cosines < _CORNER) + 1), len(line) - 1]
    pieces = [line[:1]]
    for first, last in pairwise(corners):
        count = math.ceil((travelled[last] - travelled[first]) / spacing_px)
        fraction = np.arange(1, count) / count
        at = travelled[first] + fraction * (travelled[last] - travelled[first])
        step = np.searchsorted(travelled, at, side="right") - 1
        beyond = (at - travelled[step]) / lengths[step]
        pieces += [line[step] + beyond[:, None] * steps[step], line[last : last + 1]]
    return np.concatenate(pieces)


def render(points: Points, segments: Segments) -> NDArray[np.uint8]:
    """Render white lines on black by the plain rule (see `raster`).

    Args:
        points: (drawings, points, 2) float32 pixels, as `fit` returns them.
        segments: what to join, the same in every drawing. A segment of no length draws nothing.

    Returns:
        (drawings, 28, 28) uint8.
    """
    lines = np.concatenate([points[:, segments.tails], points[:, segments.heads]], axis=-1)
    drawn = (lines[..., :2] != lines[..., 2:]).any(axis=-1)  # (drawings, segments)
    return draw_segments(lines[drawn], np.nonzero(drawn)[0], len(points))
