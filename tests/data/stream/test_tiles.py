from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.stream.tiles import TILE, pack

_STROKE = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=1, max_size=40
).map(lambda points: tuple(zip(*points, strict=True)))


@given(st.lists(st.lists(_STROKE, max_size=4), min_size=1, max_size=5))
def test_tiles_hold_every_segment_once_and_repeat_the_last(drawings):
    tiles = pack(Strokes.from_lists(drawings))
    for number, drawing in enumerate(drawings):
        expected = [
            (*one, *other)
            for x, y in drawing
            for one, other in itertools.pairwise(list(zip(x, y, strict=True)) * (1 + (len(x) == 1)))
        ]
        rows = tiles.segments[tiles.first[number] : tiles.first[number + 1]].reshape(-1, 4).tolist()
        assert tiles.counts[number] == len(expected)
        assert [tuple(row) for row in rows[: len(expected)]] == expected
        assert 0 <= len(rows) - len(expected) < TILE
        assert all(tuple(row) == expected[-1] for row in rows[len(expected) :])
    assert tiles.first[-1] == len(tiles.segments)
    assert np.all(np.diff(tiles.first) >= 0)
