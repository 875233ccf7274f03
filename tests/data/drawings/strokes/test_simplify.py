"""The official simplification: equal to the official files, and to the recipe read point by point.

No drawing at hand is a single place; hand-made ones are.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.data.drawings.strokes.simplify import EPSILON, LONG_SIDE, simplify

coordinates = st.integers(-300, 300)
strokes = st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=8)
drawings = st.lists(strokes, min_size=1, max_size=3)


def as_columns(drawing):
    return [list(zip(*stroke, strict=True)) for stroke in drawing]


def as_points(simplified):
    return [list(zip(x.tolist(), y.tolist(), strict=True)) for x, y in simplified]


def walked(line):
    """Points at whole distances, found by walking along the line."""
    found, ahead, index = [line[0]], 0.0, 0
    lengths = [math.sqrt((a - c) ** 2 + (b - d) ** 2) for (a, b), (c, d) in pairwise(line)]
    at = 1.0
    while index < len(lengths):
        if at > ahead + lengths[index]:
            ahead += lengths[index]
            index += 1
            continue
        part = (at - ahead) / lengths[index]
        found.append(
            tuple(
                a * (1 - part) + b * part for a, b in zip(line[index], line[index + 1], strict=True)
            )
        )
        at += 1
    return [*found, line[-1]]


def recursed(line):
    """Ramer-Douglas-Peucker as it is usually written."""
    (ax, ay), (bx, by) = line[0], line[-1]
    length = math.sqrt((bx - ax) ** 2 + (by - ay) ** 2)
    distances = [
        abs((bx - ax) * (ay - y) - (by - ay) * (ax - x)) / length
        if length
        else math.sqrt((ax - x) ** 2 + (ay - y) ** 2)
        for x, y in line[1:-1]
    ]
    if not distances or max(distances) <= EPSILON:
        return [line[0], line[-1]]
    middle = 1 + distances.index(max(distances))
    return recursed(line[: middle + 1])[:-1] + recursed(line[middle:])


def by_the_recipe(drawing):
    points = [point for stroke in drawing for point in stroke]
    low = [min(values) for values in zip(*points, strict=True)]
    side = max(
        max(values) - least for values, least in zip(zip(*points, strict=True), low, strict=True)
    )
    scaled = [
        [
            tuple((v - least) * LONG_SIDE / (side or 1) for v, least in zip(p, low, strict=True))
            for p in stroke
        ]
        for stroke in drawing
    ]
    return [[(round(x), round(y)) for x, y in recursed(walked(stroke))] for stroke in scaled]


def test_raw_drawings_become_the_official_simplified_ones(real_data: Path):
    pairs = 0
    for path in sorted((real_data / "raw").glob("*.ndjson")):
        with path.open() as lines:
            raw = {record["key_id"]: record for record in map(json.loads, lines)}
        with (real_data / "simplified" / path.name).open() as lines:
            for record in map(json.loads, lines):
                if record.get("key_id") in raw:
                    ours = simplify(raw[record["key_id"]]["drawing"])
                    assert [[x.tolist(), y.tolist()] for x, y in ours] == record["drawing"]
                    pairs += 1
    assert pairs == 516


@given(drawings)
def test_it_is_the_recipe_point_by_point(drawing):
    assert as_points(simplify(as_columns(drawing))) == by_the_recipe(drawing)


@given(drawings, st.integers(-5, 5), st.tuples(coordinates, coordinates))
def test_neither_place_nor_size_matters(drawing, doublings, shift):
    """Powers of two and whole numbers, so that no rounding differs."""
    moved = [
        [
            tuple(2.0**doublings * (v + s) for v, s in zip(point, shift, strict=True))
            for point in stroke
        ]
        for stroke in drawing
    ]
    assert as_points(simplify(as_columns(moved))) == as_points(simplify(as_columns(drawing)))


def test_dots_and_flat_drawings():
    assert simplify([]) == []
    assert as_points(simplify([[[3], [4], [0]]])) == [[(0, 0), (0, 0)]]  # the time is ignored
    assert as_points(simplify([[[3, 3], [4, 4]], [[3], [4]]])) == [[(0, 0), (0, 0)]] * 2
    assert as_points(simplify([[[5, 9], [4, 4]], [[7], [4]]])) == [
        [(0, 0), (255, 0)],
        [(128, 0), (128, 0)],
    ]


@pytest.mark.parametrize(
    "stroke",
    [
        [[], []],
        [[1, 2], [1]],
        [[1, math.nan], [1, 2]],
        [[-math.inf, 1], [1, 2]],
        [[-1e308, 1e308], [1, 2]],
        [[-1e307, 1e307], [1, 2]],
        [["a"], [1]],
    ],
)
def test_what_is_no_stroke(stroke):
    with pytest.raises(ValueError):
        simplify([[[0, 5], [0, 5]], stroke])
