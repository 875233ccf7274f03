"""Synthetic drawings as strokes: as reproducible as the bitmaps, and nearly the same pictures."""

from __future__ import annotations

import pickle
import zlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraw_dist.base.hashing import key64, random64
from quickdraw_dist.data.drawings import raster
from quickdraw_dist.data.drawings.drawing import Source
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.drawings.strokes.arrays import RECOGNIZED, Strokes
from quickdraw_dist.data.drawings.synthetic import strokes as synthetic
from quickdraw_dist.data.drawings.synthetic.templates import make_template, shown_strokes
from quickdraw_dist.data.shards.integrity import combine_crc32c

ALL = "synthetic:?classes=3&per_class=4000"
POOL = ALL + "&pool=16"
both = pytest.mark.parametrize("url", [ALL, POOL])


def opened(url: str, classes: tuple[str, ...] = ()) -> Source:
    return open_source(url, classes, "strokes")


def drawn(source: Source, label: int, start: int, stop: int) -> Strokes:
    drawings = source.read(label, start, stop).drawings
    assert isinstance(drawings, Strokes)
    return drawings


def bytes_of(drawings: Strokes) -> bytes:
    arrays = (drawings.x, drawings.y, drawings.points, drawings.strokes, drawings.recognized)
    assert [str(array.dtype) for array in arrays] == ["uint8", "uint8", "uint16", "uint16", "uint8"]
    return b"".join(array.tobytes() for array in arrays)


def largest(drawings: Strokes) -> np.ndarray:
    """The largest x and y of every drawing, (n, 2)."""
    first = drawings.first_points()[:-1]
    axes = (drawings.x, drawings.y)
    return np.stack([np.maximum.reduceat(values, first) for values in axes], axis=-1).astype(int)


def smallest(drawings: Strokes) -> np.ndarray:
    first = drawings.first_points()[:-1]
    axes = (drawings.x, drawings.y)
    return np.stack([np.minimum.reduceat(values, first) for values in axes], axis=-1).astype(int)


@both
@settings(max_examples=15)
@given(
    label=st.integers(0, 2),
    start=st.integers(0, 3000),
    sizes=st.lists(st.integers(0, 600), min_size=1, max_size=3),
)
def test_a_slice_is_its_rows(url: str, label: int, start: int, sizes: list[int]) -> None:
    source = opened(url)
    cuts = [start, *(min(4000, start + int(size)) for size in np.cumsum(sizes))]
    whole = source.read(label, cuts[0], cuts[-1])
    pieces = [source.read(label, a, b) for a, b in pairwise(cuts)]
    assert bytes_of(Strokes.concatenate([piece.drawings for piece in pieces])) == bytes_of(
        whole.drawings
    )
    row = cuts[0] + (cuts[-1] - cuts[0]) // 2
    if row < cuts[-1]:
        alone = drawn(source, label, row, row + 1)
        assert bytes_of(alone) == bytes_of(whole.drawings.slice(row - start, row - start + 1))
    # Checksums of slices join to that of the whole, as those of a file do.
    crc = 0
    for piece, (a, b) in zip(pieces, pairwise(cuts), strict=True):
        first, end = source.span(label, a, b)
        crc = combine_crc32c(crc, piece.crc32c, end - first)
    assert crc == whole.crc32c


def test_strokes_show_what_the_bitmaps_show() -> None:
    bitmaps = open_source("synthetic:?classes=345")
    as_strokes = opened("synthetic:?classes=345")
    assert (bitmaps.content, as_strokes.content) == ("bitmaps", "strokes")
    assert bitmaps.counts == as_strokes.counts
    for label in range(0, 345, 30):
        pixels = bitmaps.read(label, 0, 40).drawings
        error = np.abs(raster.plain(drawn(as_strokes, label, 0, 40)).astype(int) - pixels)
        assert error.mean() < 5  # two drawings of one class differ by 60


def test_drawings_fill_the_official_square() -> None:
    for label in range(3):
        drawings = drawn(opened(ALL), label, 0, 1000)
        assert (largest(drawings).max(axis=1) == 255).all()
        assert not smallest(drawings).any()


def test_missing_strokes_are_not_there() -> None:
    drawings = drawn(opened(ALL), 1, 0, 1000)
    template = make_template(7, 1, synthetic._SPACING_PX)
    shown = shown_strokes(template, random64(key64("drawings", 7, 1), 1000))
    assert drawings.strokes.tolist() == shown.sum(axis=1).tolist()
    assert set(drawings.strokes.tolist()) != {len(template.centres)}
    assert drawings.points.tolist() == np.broadcast_to(
        np.bincount(template.stroke), shown.shape
    )[shown].tolist()  # fmt: skip


def test_345_classes_carry_the_load_of_real_drawings() -> None:
    source = opened("synthetic:?classes=345")
    drawings = Strokes.concatenate([drawn(source, label, 0, 20) for label in range(345)])
    segments = np.diff(drawings.first_points()) - drawings.strokes
    assert segments.mean() == pytest.approx(38.4, abs=1)
    assert 3.5 < drawings.strokes.mean() < 5.5
    recognized = drawings.recognized == RECOGNIZED
    assert recognized.mean() == pytest.approx(0.932, abs=0.01)
    assert drawings.recognized.max() == RECOGNIZED  # none is unknown


@pytest.mark.parametrize("label", [0, 2])
def test_a_pool_is_the_first_drawings_moved(label: int) -> None:
    originals = drawn(opened(ALL), label, 0, 16)
    shapes = {bytes_of(originals.slice(row, row + 1)): row for row in range(16)}
    drawings = drawn(opened(POOL), label, 0, 4000)
    assert largest(drawings).max() == 255
    moved = smallest(drawings)
    points = np.diff(drawings.first_points())
    back = replace(
        drawings,
        x=drawings.x - np.repeat(moved[:, 0], points).astype(np.uint8),
        y=drawings.y - np.repeat(moved[:, 1], points).astype(np.uint8),
    )
    found = [shapes[bytes_of(back.slice(row, row + 1))] for row in range(4000)]
    assert set(found) == set(range(16))
    free = 255 - largest(originals)
    for row in range(16):  # about 250 copies of each reach both ends of what is free
        shifts = moved[np.array(found) == row]
        assert (shifts.min(axis=0) <= free[row] * 0.1).all()
        assert (shifts.max(axis=0) >= free[row] * 0.9).all()
        assert (shifts.max(axis=0) <= free[row]).all()


@both
def test_drawings_are_counter_based(url: str) -> None:
    few = opened(url)
    many = opened(url.replace("classes=3", "classes=50").replace("4000", "4294967296"))
    last = opened(url.replace("4000", "4294967296"), ("synthetic-002", "synthetic-001"))
    assert bytes_of(drawn(few, 1, 3, 90)) == bytes_of(drawn(many, 1, 3, 90))
    assert bytes_of(drawn(few, 1, 3, 90)) == bytes_of(drawn(last, 1, 3, 90))
    assert len(drawn(last, 0, 2**32 - 2, 2**32)) == 2
    assert bytes_of(drawn(opened(url + "&seed=8"), 1, 3, 90)) != bytes_of(drawn(few, 1, 3, 90))
    assert pickle.loads(pickle.dumps(few)) == few
    with pytest.raises(IndexError, match="of 4000"):
        few.read(0, 0, 4001)


def test_the_points_never_change() -> None:
    """A change of these is another dataset: whoever means it writes a new number here."""
    crc = 0
    for url in ("synthetic:?classes=345", "synthetic:?classes=345&pool=64"):
        for label in (0, 19, 344):
            crc = zlib.crc32(bytes_of(drawn(opened(url), label, 100, 164)), crc)
    assert crc == 0xA150D558


def test_the_checksum_covers_everything() -> None:
    drawings = drawn(opened(ALL), 0, 0, 3)
    changed = [drawings]
    for field in ("x", "y", "recognized"):
        array = getattr(drawings, field).copy()
        array[1] ^= 1
        changed.append(replace(drawings, **{field: array}))
    swapped, cut = drawings.x.copy(), drawings.points.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    cut[:2] += np.array([1, -1], np.int16).astype(np.uint16)
    changed += [replace(drawings, x=swapped), replace(drawings, points=cut)]
    moved = drawings.strokes + np.array([1, -1, 0], np.int16).astype(np.uint16)
    changed += [replace(drawings, strokes=moved)]
    assert len({synthetic.checked(one) for one in changed}) == len(changed)
    assert len(synthetic.checked(drawings)) == 3 * synthetic.CHECKED_BYTES
    assert synthetic.checked(drawings.slice(1, 1)) == b""
