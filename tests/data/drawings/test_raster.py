"""Strokes as pixels: cairo gives the official bytes, the plain rule the distance of every pixel."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.data.drawings import raster
from quickdraw_dist.data.drawings.drawing import SIDE
from quickdraw_dist.data.drawings.strokes.arrays import Strokes

PAIRED = 25
"""Rows at the beginning of an official file whose strokes are known (not of zigzag)."""

coordinates = st.integers(0, 255)
lines = st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=5).map(
    lambda points: tuple(zip(*points, strict=True))
)
drawings = st.lists(st.lists(lines, max_size=3), min_size=1, max_size=4)


@pytest.fixture
def cairo() -> None:
    """The optional library, which a CI machine has: it refuses skips."""
    try:
        raster.official(Strokes.from_lists([]))
    except RefusedError as error:
        pytest.skip(str(error))


def paired(real_data: Path, every: int) -> tuple[Strokes, NDArray[np.uint8]]:
    """Strokes of every n-th class, and the official bitmaps of the same drawings."""
    strokes, bitmaps = [], []
    paths = sorted((real_data / "simplified").glob("*.ndjson"))
    for path in [path for path in paths if path.stem != "zigzag"][::every]:
        with path.open() as records:
            known = (record for record in map(json.loads, records) if "timestamp" in record)
            strokes += [record["drawing"] for record, _ in zip(known, range(PAIRED), strict=False)]
        rows = np.load(real_data / "numpy_bitmap" / f"{path.stem}.npy", mmap_mode="r")
        bitmaps.append(rows[:PAIRED].reshape(-1, SIDE, SIDE))
    return Strokes.from_lists(strokes), np.concatenate(bitmaps)


@pytest.mark.usefixtures("cairo")
@pytest.mark.parametrize("every", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_cairo_gives_the_official_bytes(real_data: Path, every: int) -> None:
    strokes, bitmaps = paired(real_data, every)
    assert len(strokes) == len(bitmaps) == PAIRED * len(range(0, 344, every))
    assert np.array_equal(raster.official(strokes), bitmaps)


def test_the_plain_rule_is_near(real_data: Path) -> None:
    strokes, bitmaps = paired(real_data, every=10)
    error = np.abs(raster.plain(strokes).astype(int) - bitmaps)
    assert error.mean() < 2  # of 255; 1.77 over all that are paired
    assert (error > 32).mean() < 0.012


@given(drawings)
def test_the_plain_rule_is_the_distance_of_every_pixel(drawings) -> None:
    """The patches of pixels leave out nothing: compared with all pixels, in float64."""
    rendered = raster.plain(Strokes.from_lists(drawings))
    centres = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), axis=-1) + 0.5
    for drawing, strokes in zip(rendered, drawings, strict=True):
        distance = np.full((SIDE, SIDE), np.inf)
        whole = np.concatenate([np.array(stroke).T for stroke in strokes] or [np.zeros((1, 2))])
        for stroke in strokes:
            points = np.array(stroke).T + (256 - whole.max(axis=0)) / 2 + 24
            points = points * (28 / 304)
            for start, end in zip(points, [*points[1:], points[-1]], strict=True):
                along = end - start
                part = np.clip((centres - start) @ along / max(along @ along, 1e-12), 0, 1)
                off = centres - start - part[..., None] * along
                distance = np.minimum(distance, np.sqrt((off**2).sum(axis=-1)))
        expected = 255 * np.clip(8 * 28 / 304 + 0.5 - distance, 0, 1)
        assert np.abs(drawing - expected).max() < 0.75  # half a level of rounding, and float32
        assert not drawing[[0, -1]].any()
        assert not drawing[:, [0, -1]].any()


@pytest.mark.usefixtures("cairo")
@pytest.mark.parametrize("draw", [raster.plain, raster.official])
@given(drawings=drawings)
def test_drawings_of_one_call_do_not_touch_each_other(draw, drawings) -> None:
    together = draw(Strokes.from_lists(drawings))
    for alone, drawing in zip(drawings, together, strict=True):
        assert np.array_equal(draw(Strokes.from_lists([alone]))[0], drawing)


@pytest.mark.usefixtures("cairo")
def test_blank_drawings_and_dots() -> None:
    strokes = Strokes.from_lists([[], [([7], [9])], []])
    for draw in (raster.plain, raster.official):
        blank, dot, also_blank = draw(strokes)
        assert not blank.any()
        assert not also_blank.any()
        assert dot.sum() / 255 == pytest.approx(math.pi * (8 * 28 / 304) ** 2, abs=0.3)
        assert draw(Strokes.from_lists([])).shape == (0, SIDE, SIDE)


def test_without_cairo_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cairocffi", None)
    with pytest.raises(RefusedError) as refused:
        raster.official(Strokes.from_lists([[([1, 2], [3, 4])]]))
    assert refused.value.value == "bitmaps"
    assert "cairo" in refused.value.problem
    assert "quickdraw-dist[strokes]" in refused.value.remedy
    assert "libcairo2" in refused.value.remedy
