"""Hold many drawings as pen strokes in flat arrays, which numpy slices, permutes and joins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

UNRECOGNIZED, RECOGNIZED, UNKNOWN = range(3)
"""Values of `Strokes.recognized`: whether Google's recogniser guessed the class while it was drawn;
unknown where the source does not say."""


@dataclass(frozen=True)
class Strokes:
    """n drawings of S strokes and P points in all, laid end to end in the order of drawing.

    Coordinates are those of the simplified drawings, 0 to 255, x to the right and y down. A stroke
    has two points or more: a dot is two equal ones. A drawing without strokes is blank.
    """

    x: NDArray[np.uint8]  # (P,)
    y: NDArray[np.uint8]  # (P,)
    points: NDArray[np.uint16]  # (S,): points per stroke
    strokes: NDArray[np.uint16]  # (n,): strokes per drawing
    recognized: NDArray[np.uint8]  # (n,)

    def __len__(self) -> int:
        """Return the number of drawings."""
        return len(self.strokes)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in (self.x, self.y, self.points, self.strokes)) + len(
            self
        )

    def first_strokes(self) -> NDArray[np.int64]:
        """Return the index of every drawing's first stroke, and S: (n + 1,)."""
        return ends(self.strokes)

    def first_points(self) -> NDArray[np.int64]:
        """Return the index of every drawing's first point, and P: (n + 1,)."""
        return ends(self.points)[self.first_strokes()]

    def segment_starts(self) -> NDArray[np.int64]:
        """Return the index of every segment's first point; the next point ends it: (segments,)."""
        joined = np.ones(len(self.x), np.bool_)
        joined[ends(self.points)[1:] - 1] = False  # the last point of a stroke begins no segment
        return joined.nonzero()[0]

    def differs(self, other: Strokes) -> NDArray[np.bool_]:
        """Return which drawings are others than those of as many other strokes, (n,)."""
        first, theirs = self.first_points(), other.first_points()
        wrong: NDArray[np.bool_] = np.diff(first) != np.diff(theirs)
        wrong |= self.strokes != other.strokes
        wrong |= self.recognized != other.recognized
        alike = (~wrong).nonzero()[0]
        one, two = self.take(alike), other.take(alike)  # equal strokes and points per drawing
        for unlike, starts in (
            (one.points != two.points, one.first_strokes()),
            ((one.x != two.x) | (one.y != two.y), one.first_points()),
        ):
            wrong[alike] |= np.diff(ends(unlike.view(np.uint8))[starts]) > 0
        return wrong

    def slice(self, start: int, stop: int) -> Strokes:
        """Return drawings `start` to `stop`, without a copy."""
        strokes = slice(*self.first_strokes()[[start, stop]])
        points = slice(*ends(self.points)[[strokes.start, strokes.stop]])
        own = slice(start, stop)
        return Strokes(
            self.x[points], self.y[points], self.points[strokes], self.strokes[own],
            self.recognized[own],
        )  # fmt: skip

    def take(self, drawings: NDArray[np.integer]) -> Strokes:
        """Return a copy of these drawings, (k,) indices, in their order."""
        first_strokes, stroke_ends = self.first_strokes(), ends(self.points)
        counts = self.strokes[drawings]
        strokes = ragged(first_strokes[drawings], counts)
        points = ragged(stroke_ends[strokes], self.points[strokes])
        return Strokes(
            self.x[points], self.y[points], self.points[strokes], counts, self.recognized[drawings]
        )

    @staticmethod
    def concatenate(several: Sequence[Strokes]) -> Strokes:
        """Return the drawings of all, in order."""
        return Strokes(
            np.concatenate([strokes.x for strokes in several]),
            np.concatenate([strokes.y for strokes in several]),
            np.concatenate([strokes.points for strokes in several]),
            np.concatenate([strokes.strokes for strokes in several]),
            np.concatenate([strokes.recognized for strokes in several]),
        )

    @staticmethod
    def from_lists(
        drawings: Iterable[Sequence[tuple[ArrayLike, ArrayLike]]],
        recognized: Sequence[int] | None = None,
    ) -> Strokes:
        """Return drawings given as lists of strokes, each the x and the y of one point or more.

        `recognized` has a value per drawing; without it, all are unknown.
        """
        xs: list[NDArray[np.uint8]] = []
        ys: list[NDArray[np.uint8]] = []
        counts = []
        for drawing in drawings:
            counts.append(len(drawing))
            for x, y in drawing:
                for arrays, values in ((xs, x), (ys, y)):
                    array = np.asarray(values, np.uint8)
                    arrays.append(np.repeat(array, 2) if len(array) == 1 else array)
        none = np.empty(0, np.uint8)
        return Strokes(
            np.concatenate([none, *xs]),
            np.concatenate([none, *ys]),
            np.array([len(x) for x in xs], np.uint16),
            np.array(counts, np.uint16),
            np.full(len(counts), UNKNOWN, np.uint8)
            if recognized is None
            else np.array(recognized, np.uint8),
        )


def ends(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return 0 and the running sum of counts, (len(counts) + 1,): where each item begins."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def ragged(first: NDArray[np.int64], counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the indices first[i], first[i] + 1, ... (counts[i] of them) of all i, end to end."""
    starts = ends(counts)
    return np.repeat(first - starts[:-1], counts) + np.arange(starts[-1])
