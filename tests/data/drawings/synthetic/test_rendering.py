"""Geometry: the size, place, width and brightness of lines are those of the official bitmaps."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraw_dist.data.drawings import raster
from quickdraw_dist.data.drawings.drawing import SIDE
from quickdraw_dist.data.drawings.synthetic import rendering
from quickdraw_dist.data.drawings.synthetic.rendering import Line, Points, Segments

untimed = settings(deadline=None)

coordinates = st.integers(-1000, 1000).map(lambda number: number / 7)
places = st.tuples(coordinates, coordinates)
paths = st.lists(places, min_size=2, max_size=6).filter(
    lambda path: math.dist(np.min(path, axis=0), np.max(path, axis=0)) > 1
)


def chain(count: int) -> Segments:
    """Every point joined with the next."""
    return Segments(tails=np.arange(count - 1), heads=np.arange(1, count))


def one(*points: tuple[float, float]) -> Points:
    """One drawing of these points."""
    return np.array([points], np.float32)


def test_official_numbers() -> None:
    long_side_px, line_width_px = rendering.LONG_SIDE_PX, raster.LINE_WIDTH_PX
    assert long_side_px == pytest.approx(23.487, abs=5e-4)
    assert line_width_px == pytest.approx(1.4737, abs=5e-5)


@untimed
@given(path=paths)
def test_fit_gives_the_long_side_and_the_middle(path: list[tuple[float, float]]) -> None:
    points = rendering.fit(one(*path))[0]
    low, high = points.min(axis=0), points.max(axis=0)
    assert (high - low).max() == pytest.approx(255 * 28 / 304, abs=1e-3)
    assert (high + low) / 2 == pytest.approx(14.0, abs=1e-3)
    before = np.ptp(np.array(path), axis=0)
    assert (high - low) / (high - low).max() == pytest.approx(before / before.max(), abs=1e-3)


@untimed
@given(path=paths)
def test_render_agrees_with_the_distance_of_every_pixel(path: list[tuple[float, float]]) -> None:
    """The patches of pixels leave out nothing: compared with all pixels, in float64."""
    points = rendering.fit(one(*path))
    rendered = rendering.render(points, chain(len(path)))[0]

    line = points[0].astype(np.float64)
    centres = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1) + 0.5
    distance = np.full((SIDE, SIDE), np.inf)
    for start, end in pairwise(line):
        squared = float((end - start) @ (end - start))
        if squared > 0:
            part = np.clip((centres - start) @ (end - start) / squared, 0, 1)
            off = centres - start - part[..., None] * (end - start)
            distance = np.minimum(distance, np.sqrt((off**2).sum(axis=-1)))
    expected = 255 * np.clip(8 * 28 / 304 + 0.5 - distance, 0, 1)
    assert np.abs(rendered - expected).max() < 0.75  # half a level of rounding, and float32
    assert not rendered[[0, -1]].any()
    assert not rendered[:, [0, -1]].any()


def test_a_line_has_the_official_width() -> None:
    drawing = rendering.render(one((4.0, 14.5), (24.0, 14.5)), chain(2))[0]
    column = drawing[:, 14] / 255
    assert column.sum() == pytest.approx(16 * 28 / 304, abs=0.01)
    assert column[14] == 1
    assert np.flatnonzero(column).tolist() == [13, 14, 15]


def test_drawings_of_one_call_do_not_touch_each_other() -> None:
    points = np.concatenate([one((4, 4), (9, 4)), one((5, 5), (5, 5)), one((20, 20), (20, 24))])
    drawings = rendering.render(points, chain(2))
    assert not drawings[1].any()  # a segment of no length draws nothing
    for alone, together in zip(points, drawings, strict=True):
        assert np.array_equal(rendering.render(alone[None], chain(2))[0], together)


SHAPES = (
    rendering.straight,
    rendering.arc,
    rendering.ellipse,
    rendering.polygon,
    rendering.zigzag,
    rendering.wave,
    rendering.spiral,
    rendering.curve,
    rendering.leaf,
)


@pytest.mark.parametrize("shape", SHAPES)
@untimed
@given(a=st.floats(0, 1, exclude_max=True), b=st.floats(0, 1, exclude_max=True))
def test_shapes_are_lines_of_unit_size(
    shape: rendering.Shape,
    a: float,
    b: float,
) -> None:
    line = shape(a, b)
    assert line.shape[1] == 2
    assert np.abs(line).max() <= 1.01
    assert np.ptp(line, axis=0).max() > 0.8
    assert (np.abs(np.diff(line, axis=0)).max(axis=1) > 0).all()  # `resample` divides by the steps


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spacing_px", [0.7, 2.4, 100.0])
def test_resample_keeps_ends_spacing_and_length(shape: rendering.Shape, spacing_px: float) -> None:
    line: Line = shape(0.4, 0.7) * 10
    even = rendering.resample(line, spacing_px)
    assert np.array_equal(even[[0, -1]], line[[0, -1]])
    lengths, whole = rendering.arc_lengths(even), rendering.arc_lengths(line)[-1]
    assert np.diff(lengths).max() <= spacing_px + 1e-9
    assert lengths[-1] <= whole + 1e-9
    if spacing_px == 0.7:
        assert lengths[-1] == pytest.approx(whole, rel=0.02)


def test_resample_keeps_corners() -> None:
    square = np.array([(0, 0), (10, 0), (10, 10), (0, 10), (0, 0)], np.float64)
    even = rendering.resample(square, 4.0)
    assert {tuple(corner) for corner in square} <= {tuple(point) for point in even.tolist()}
    assert len(even) == 4 * 3 + 1


def test_scaled_counts_the_line() -> None:
    strokes, length_px = rendering.scaled(
        [np.array([(0.0, 0), (2, 0)]), np.array([(1.0, 0), (1, 1)])]
    )
    assert length_px == pytest.approx(1.5 * rendering.LONG_SIDE_PX)
    assert np.concatenate(strokes).mean(axis=0)[0] == pytest.approx(0)


@untimed
@given(radians=st.floats(-0.8, 0.8))
def test_rotation_keeps_lengths(radians: float) -> None:
    cos, sin = rendering.rotation(np.array([radians], np.float32))
    assert cos * cos + sin * sin == pytest.approx(1, abs=1e-6)
    assert math.atan2(sin[0], cos[0]) == pytest.approx(radians, abs=0.05)
