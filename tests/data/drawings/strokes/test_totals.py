from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.drawings.strokes.tiles import pack
from quickdraw_dist.data.drawings.strokes.totals import Totals
from tests.support.data.strokes import drawings


@given(drawings(), st.data())
def test_totals_are_those_of_the_packed_drawings_and_add_up(lists, data):
    strokes = Strokes.from_lists(lists)
    tiles = pack(strokes)
    sizes = [int(stop - start) for start, stop in zip(tiles.first, tiles.first[1:], strict=False)]
    totals = Totals.of(strokes)
    assert totals.strokes == sum(map(len, lists))
    assert totals.points == sum(max(len(x), 2) for drawing in lists for x, _ in drawing)
    assert totals.tiles == len(tiles.segments) == sum(sizes)
    assert totals.tile_squares == sum(size**2 for size in sizes)
    cut = data.draw(st.integers(0, len(lists)))
    pieces = strokes.slice(0, cut), strokes.slice(cut, len(lists))
    assert Totals.add(map(Totals.of, pieces)) == totals
    assert Totals.add([]) == Totals()
