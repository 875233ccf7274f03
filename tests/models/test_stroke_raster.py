"""Pictures of strokes: near the official ones, and the same however drawings are cut and slices are
laid out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quickdraw_dist.data.drawings import raster
from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.drawings.strokes.tiles import TilesPerDrawing, pack
from quickdraw_dist.data.stream.batch import StrokeBatch
from quickdraw_dist.models import stroke_raster
from quickdraw_dist.models.stroke_raster import PADDING, StrokeRaster
from tests.support.data.strokes import drawings, random_strokes


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def batch(strokes: Strokes) -> tuple[torch.Tensor, ...]:
    """The first four inputs of a batch of these drawings, which has unused tiles."""
    tiles = pack(strokes)
    empty = StrokeBatch.allocate(len(tiles), TilesPerDrawing(3.0, 3.0), pin=False)
    return empty.filled([tiles]).inputs()[:4]


def segments_of(strokes: Strokes) -> list[NDArray[np.float64]]:
    """The segments of each drawing, (S, 4), by its points alone."""
    found, point, stroke = [], 0, 0
    for count in strokes.strokes.tolist():
        own = []
        for points in strokes.points[stroke : stroke + count].tolist():
            xy = np.stack([strokes.x, strokes.y], 1)[point : point + points].astype(float)
            own.append(np.hstack([xy[:-1], xy[1:]]))
            point += points
        stroke += count
        found.append(np.concatenate([np.empty((0, 4)), *own]))
    return found


def padded(strokes: Strokes) -> torch.Tensor:
    """The segments of drawings as `from_segments` takes them."""
    each = segments_of(strokes)
    longest = max(1, *(len(one) for one in each))
    segments = torch.full((len(each), longest, 4), PADDING)
    for row, one in zip(segments, each, strict=True):
        row[: len(one)] = torch.from_numpy(one)
    return segments


def expected(
    segments: NDArray[np.float64], side: int, width: float = 16.0, transform: Any = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Channels (4, side, side) of one drawing as the module's docstring has them, one pixel and one
    segment at a time, and the margin by which the nearest segment is nearer than all others."""
    picture, margin = np.zeros((4, side, side)), np.full((side, side), np.inf)
    if not len(segments):
        return picture, margin
    largest = segments.reshape(-1, 2).max(axis=0)
    points = (segments.reshape(-1, 2) + (256 - largest) / 2 + 24) / 152 - 1
    if transform is not None:
        points = points @ transform[:, :2].T + transform[:, 2]
    ends = (points.reshape(-1, 2, 2) + 1) / 2 * side  # in pixels
    start, way = ends[:, 0], ends[:, 1] - ends[:, 0]
    length = np.hypot(*way.T)
    for row in range(side):
        for column in range(side):
            here = np.array([column + 0.5, row + 0.5]) - start
            along = np.clip((here * way).sum(1) / np.maximum(length**2, 1e-12), 0, 1)
            distance = np.hypot(*(here - along[:, None] * way).T)
            best = int(distance.argmin())
            ink = np.clip(0.5 + width / 304 * side / 2 - distance[best], 0, 1)
            order = best / max(1, len(segments) - 1)
            cosine, sine = way[best] / length[best] if length[best] else (0.0, 0.0)
            picture[:, row, column] = ink, order * ink, cosine * ink, sine * ink
            if len(segments) > 1:
                nearest, next_one = np.partition(distance, 1)[:2]
                margin[row, column] = next_one - nearest
    return picture, margin


@given(drawings(), st.sampled_from([8, 13]))
def test_pictures_are_as_stated(lists: Any, side: int) -> None:
    """Ink everywhere, and the other channels wherever one segment is clearly the nearest, equal a
    slow definition; the rest are those of a segment that is as near."""
    strokes = Strokes.from_lists(lists)
    pictures = StrokeRaster(side, 4)(*batch(strokes)).double().numpy()
    ink = StrokeRaster(side)(*batch(strokes)).double().numpy()
    for got, plain, segments in zip(pictures, ink, segments_of(strokes), strict=True):
        want, margin = expected(segments, side)
        np.testing.assert_allclose(plain[0], want[0], atol=2e-5)
        np.testing.assert_allclose(got[0], want[0], atol=3e-4)
        clear = margin > 2e-3
        np.testing.assert_allclose(got[:, clear], want[:, clear], atol=5e-4)


@given(drawings(), st.sampled_from([8, 28, 56]))
def test_tiles_equal_rectangles(lists: Any, side: int) -> None:
    """What trains and what is exported are one rasteriser."""
    strokes = Strokes.from_lists(lists)
    render = StrokeRaster(side)
    torch.testing.assert_close(
        render(*batch(strokes)), render.from_segments(padded(strokes)), atol=1e-6, rtol=0
    )


def test_channels_of_tiles_equal_those_of_rectangles() -> None:
    """Order and direction differ only where two segments are equally near."""
    strokes = random_strokes(64, "channels")
    render = StrokeRaster(28, 4)
    tiles, rectangle = render(*batch(strokes)), render.from_segments(padded(strokes))
    torch.testing.assert_close(tiles[:, 0], rectangle[:, 0], atol=3e-4, rtol=0)
    assert float(((tiles - rectangle).abs() > 1e-3).float().mean()) < 0.02


def test_blank_drawings() -> None:
    """A drawing without strokes is empty, between others and alone, even in a batch without
    tiles."""
    one = [([10, 200], [10, 100])]
    for channels in (1, 4):
        render = StrokeRaster(28, channels)
        pictures = render(*batch(Strokes.from_lists([one, [], one, []])))
        assert pictures.flatten(1).any(1).tolist() == [True, False, True, False]
        assert torch.equal(pictures[0], pictures[2])
        blank = Strokes.from_lists([[], []])
        assert not render.from_segments(padded(blank)).any()
        none = torch.empty(0, dtype=torch.int64)
        tiles = torch.empty(0, 16, 4, dtype=torch.uint8)
        counts = torch.zeros(3, dtype=torch.int32)
        pictures = render(tiles, none, none.int(), counts)
        assert pictures.shape == (3, channels, 28, 28) and not pictures.any()


@pytest.mark.parametrize("channels", [1, 4])
def test_one_drawing_is_one_picture(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits depend neither on the rest of a batch, nor on how many tiles are rendered at once."""
    strokes = random_strokes(40, "alone")
    render = StrokeRaster(28, channels)
    whole = render(*batch(strokes))
    for index in (0, 7, 39):
        assert torch.equal(render(*batch(strokes.slice(index, index + 1)))[0], whole[index])
    for pixels in (1, 5_000, 10**9):
        monkeypatch.setitem(stroke_raster._SLICE_PIXELS, "cpu", pixels)
        assert torch.equal(render(*batch(strokes)), whole)


@pytest.mark.parametrize("count", [1_023, 1_024, 1_025, 2_500])
def test_more_segments_than_numbers(count: int) -> None:
    """Nothing of a very long drawing is cut: all of its ink is there, and order and direction are
    near those of the nearest segment."""
    angles = np.linspace(0, 2 * np.pi, count + 1)
    x, y = (np.rint(127 + 120 * f(angles)).astype(np.uint8) for f in (np.cos, np.sin))
    strokes = Strokes.from_lists([[(x, y)]])
    order = StrokeRaster(28, 4)(*batch(strokes))[0]
    plain = StrokeRaster(28)(*batch(strokes))[0]
    torch.testing.assert_close(order[0], plain[0], atol=3e-4, rtol=0)
    axis = torch.arange(28) - 13.5
    turned = torch.atan2(axis[:, None], axis[None, :]).remainder(2 * math.pi) / (2 * math.pi)
    inside = (plain[0] > 0.9) & (turned > 0.05) & (turned < 0.95)  # not where the ends meet
    assert int(inside.sum()) > 30
    torch.testing.assert_close(order[1][inside], (turned * plain[0])[inside], atol=0.03, rtol=0)


def test_transform_and_width() -> None:
    """Points are mapped before they are rendered, lines have the width that is asked for."""
    strokes = Strokes.from_lists([[([40, 200, 90], [60, 100, 200])], [([0, 255], [0, 255])]] * 2)
    turn = np.array([[0.8, -0.3, 0.1], [0.2, 0.9, -0.2]])
    transform = torch.from_numpy(np.stack([turn, np.eye(2, 3)] * 2)).float()
    width = torch.tensor([16.0, 16.0, 40.0, 3.0])
    pictures = StrokeRaster(28, 4)(*batch(strokes), transform=transform, width=width)
    for got, segments, matrix, wide in zip(
        pictures.double().numpy(), segments_of(strokes), transform.double().numpy(),
        width.tolist(), strict=True,
    ):  # fmt: skip
        want, margin = expected(segments, 28, wide, matrix)
        clear = margin > 2e-3
        np.testing.assert_allclose(got[:, clear], want[:, clear], atol=5e-4)


def test_no_gradient() -> None:
    """Training does not keep what only a gradient would need."""
    assert not StrokeRaster()(*batch(random_strokes(2, "grad"))).requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_compiled(channels: int) -> None:
    """The compiler makes the same pictures, and one program without a break."""
    inputs = batch(random_strokes(16, "compiled"))
    render = StrokeRaster(28, channels)
    compiled = torch.compile(render, fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(*inputs), render(*inputs), atol=2e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 4])
def test_exported(channels: int) -> None:
    """`from_segments` is a program of any number of drawings and segments."""

    class Exported(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.render = StrokeRaster(28, channels)

        def forward(self, segments: torch.Tensor) -> torch.Tensor:
            return self.render.from_segments(segments)

    sizes = {0: torch.export.Dim("n"), 1: torch.export.Dim("segments")}
    program = torch.export.export(
        Exported(), (padded(random_strokes(3, "a")),), dynamic_shapes={"segments": sizes}
    )
    other = padded(random_strokes(5, "b"))
    assert torch.equal(program.module()(other), Exported()(other))


def real_strokes(real_data: Path) -> Strokes:
    """Two real drawings of every class."""
    found = []
    for file in sorted((real_data / "simplified").glob("*.ndjson")):
        with file.open() as lines:
            found += [json.loads(line)["drawing"] for _, line in zip(range(2), lines, strict=False)]
    return Strokes.from_lists(found)


def test_near_the_official_pictures(real_data: Path) -> None:
    """Real drawings differ from the official bitmaps by less than 2 of 255 per pixel."""
    pytest.importorskip("cairocffi")
    strokes = real_strokes(real_data)
    pictures = StrokeRaster()(*batch(strokes))[:, 0].numpy()
    error = np.abs(255.0 * pictures - raster.official(strokes)).mean()
    assert 0.1 < error < 2.0


def test_equal_to_the_raster_of_the_host() -> None:
    """A dataset's pixel mean and std, and synthetic bitmaps, are of the same pictures."""
    strokes = random_strokes(100, "host")
    pictures = 255 * StrokeRaster()(*batch(strokes))[:, 0].numpy()
    assert np.abs(pictures - raster.plain(strokes)).max() < 0.51
