from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.drawings.strokes.tiles import TILE, Tiles, TilesPerDrawing, pack
from tests.support.data.strokes import drawings


def rows_of(tiles: Tiles, number: int) -> list[tuple[int, ...]]:
    """The segments in the tiles of one drawing, repetitions included."""
    rows = tiles.segments[tiles.first[number] : tiles.first[number + 1]]
    return [tuple(row) for row in rows.reshape(-1, 4).tolist()]


@given(drawings())
def test_tiles_hold_every_segment_once_and_repeat_the_last(several):
    tiles = pack(Strokes.from_lists(several, range(len(several))))
    for number, drawing in enumerate(several):
        expected = [
            (*one, *other)
            for x, y in drawing
            for one, other in itertools.pairwise(list(zip(x, y, strict=True)) * (1 + (len(x) == 1)))
        ]
        rows = rows_of(tiles, number)
        assert tiles.counts[number] == len(expected)
        assert rows[: len(expected)] == expected
        assert 0 <= len(rows) - len(expected) < TILE
        assert all(row == expected[-1] for row in rows[len(expected) :])
    assert tiles.first[-1] == len(tiles.segments)
    assert np.all(np.diff(tiles.first) >= 0)
    assert tiles.recognized.tolist() == list(range(len(several)))


def equal(one: Tiles, other: Tiles) -> bool:
    arrays = ("segments", "first", "counts", "recognized")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)


@given(drawings(), st.data())
def test_slices_permutations_and_joined_tiles_are_those_of_the_strokes(several, data):
    strokes = Strokes.from_lists(several, range(len(several)))
    tiles = pack(strokes)
    start = data.draw(st.integers(0, len(several)))
    stop = data.draw(st.integers(start, len(several)))
    assert equal(tiles.slice(start, stop), pack(strokes.slice(start, stop)))
    chosen = np.array(data.draw(st.lists(st.integers(0, len(several) - 1), max_size=8)), np.int64)
    assert equal(tiles.take(chosen), pack(strokes.take(chosen)))
    joined = Tiles.concatenate([tiles.slice(start, stop), tiles.take(chosen)])
    both = Strokes.concatenate([strokes.slice(start, stop), strokes.take(chosen)])
    assert equal(joined, pack(both))


@given(
    st.integers(0, 100_000), st.floats(0, 60), st.floats(0, 60), st.integers(0, 10**7)
)  # fmt: skip
def test_a_batch_has_room_for_what_it_needs_and_few_shapes(drawings, mean, sd, needed):
    sizes = TilesPerDrawing(mean, sd)
    usual, enough = sizes.capacity(drawings), sizes.capacity(drawings, needed)
    assert usual >= drawings * mean
    assert enough >= needed
    assert enough == usual or enough < 2 * max(needed, 64)
    assert (enough // max(usual, 64)).bit_count() == 1 or enough == usual
    assert sizes.capacity(drawings, usual) == usual


def test_the_measured_shape_of_4096_drawings():
    """2.87 tiles of 16 segments per drawing, and 12,302 for 4,096 drawings when padded by six
    standard deviations, as first measured on 182,532 drawings; rounded up to 64."""
    assert TilesPerDrawing(2.87, 1.42).capacity(4096) == 12_352
    assert TilesPerDrawing(2.87, 1.42).capacity(4096, 12_353) == 24_704
