"""Simplify raw drawings as the official simplified files were made, equal in every point.

The published recipe (align to the top-left corner, scale to 255, resample at 1 pixel, then
Ramer-Douglas-Peucker with epsilon 2.0) leaves the order of operations open, and two points may be
equally far from a line up to the last bit. The formulas below, in float64 and in this order, gave
all 516 drawings of which both files were at hand. Only +, -, *, /, sqrt and rounding to even touch
a coordinate, so a port to another language gives the same points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

LONG_SIDE = 255
"""The longer side of a simplified drawing, in units."""

EPSILON = 2.0
"""A point farther than this from the line between its neighbours is kept, in units."""

Coordinates = NDArray[np.float64]


def simplify(
    strokes: Sequence[Sequence[ArrayLike]],
) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Return the x and y of a raw drawing's strokes, simplified as the official files are.

    Args:
        strokes: each begins with x and y of one point or more, in any unit; y down. What
            follows them (raw files have the time) is ignored.

    Returns:
        A pair of uint8 arrays per stroke, 0 to 255, of two points or more: a dot is two equal
        points. A drawing that is a single place lies at (0, 0).

    Raises:
        ValueError: a stroke has no point or not as many x as y, or a coordinate is no finite
            number.
    """
    if not strokes:
        return []
    lines = [np.array([stroke[0], stroke[1]], np.float64) for stroke in strokes]  # each (2, n)
    if not all(line.ndim == 2 and line.size for line in lines):
        raise ValueError("a stroke has no points")
    low = np.min([line.min(axis=1) for line in lines], axis=0)[:, None]  # (2, 1)
    high = np.max([line.max(axis=1) for line in lines], axis=0)[:, None]
    with np.errstate(over="ignore", invalid="ignore"):  # found by the next line
        side = (high - low).max()
        largest = side * LONG_SIDE
    if not np.isfinite(largest):
        raise ValueError("a coordinate is not finite, or two are too far apart")
    simplified = []
    for line in lines:
        scaled = (line - low) * LONG_SIDE / (side or 1.0)
        x, y = np.rint(thin(*resample(*scaled))).astype(np.uint8)
        simplified.append((x, y))
    return simplified


def resample(x: Coordinates, y: Coordinates) -> tuple[Coordinates, Coordinates]:
    """Return a line's points at every whole distance along it, between its first and last point.

    Args:
        x: (n,), n >= 1.
        y: (n,).

    Returns:
        x and y, each (m,), m >= 2.
    """
    along_x, along_y = x[1:] - x[:-1], y[1:] - y[:-1]
    steps = np.sqrt(along_x * along_x + along_y * along_y)
    travelled = np.concatenate([[0.0], np.cumsum(steps)])
    at = np.arange(1.0, travelled[-1])
    step = np.searchsorted(travelled, at) - 1  # travelled[step] < at <= travelled[step + 1]
    part = (at - travelled[step]) / steps[step]
    rest = 1 - part
    return (
        np.concatenate([x[:1], x[step] * rest + x[step + 1] * part, x[-1:]]),
        np.concatenate([y[:1], y[step] * rest + y[step + 1] * part, y[-1:]]),
    )


def thin(x: Coordinates, y: Coordinates) -> Coordinates:
    """Return the points that Ramer-Douglas-Peucker keeps of a line, (2, k): x and y.

    Distances are those to the infinite line through an interval's ends; of equally distant points
    the first one is kept.

    Args:
        x: (m,), m >= 2.
        y: (m,).
    """
    kept = np.zeros(len(x), np.bool_)
    kept[[0, -1]] = True
    intervals = [(0, len(x) - 1)]
    while intervals:
        first, last = intervals.pop()
        if last - first < 2:
            continue
        from_x, from_y = x[first] - x[first + 1 : last], y[first] - y[first + 1 : last]
        along_x, along_y = x[last] - x[first], y[last] - y[first]
        length = np.sqrt(along_x * along_x + along_y * along_y)
        if length:
            distances = np.abs(along_x * from_y - along_y * from_x) / length
        else:
            distances = np.sqrt(from_x * from_x + from_y * from_y)
        farthest = int(distances.argmax())
        if distances[farthest] > EPSILON:
            middle = first + 1 + farthest
            kept[middle] = True
            intervals += [(first, middle), (middle, last)]
    return np.stack([x[kept], y[kept]])
