from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.data.drawings.strokes.arrays import RECOGNIZED, UNKNOWN, Strokes

_STROKE = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=2, max_size=5).map(
    lambda points: tuple(zip(*points, strict=True))
)
_DRAWINGS = st.lists(st.lists(_STROKE, max_size=3), min_size=1, max_size=6)


def as_lists(strokes: Strokes) -> list[list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """The inverse of `Strokes.from_lists`, one point at a time."""
    points = iter(zip(strokes.x.tolist(), strokes.y.tolist(), strict=True))
    sizes = iter(strokes.points.tolist())
    return [
        [tuple(zip(*[next(points) for _ in range(next(sizes))], strict=True)) for _ in range(count)]
        for count in strokes.strokes.tolist()
    ]


@given(_DRAWINGS, st.data())
def test_pieces_and_permutations_are_those_of_the_lists(drawings, data):
    strokes = Strokes.from_lists(drawings, range(len(drawings)))
    assert as_lists(strokes) == drawings
    start = data.draw(st.integers(0, len(drawings)))
    stop = data.draw(st.integers(start, len(drawings)))
    assert as_lists(strokes.slice(start, stop)) == drawings[start:stop]
    chosen = data.draw(st.lists(st.integers(0, len(drawings) - 1), max_size=8))
    taken = strokes.take(np.array(chosen, np.int64))
    assert as_lists(taken) == [drawings[index] for index in chosen]
    assert taken.recognized.tolist() == chosen
    both = Strokes.concatenate([strokes, taken])
    assert as_lists(both) == drawings + [drawings[index] for index in chosen]
    assert strokes.first_points().tolist() == [
        sum(len(x) for drawing in drawings[:n] for x, _ in drawing)
        for n in range(len(drawings) + 1)
    ]


def test_a_dot_becomes_two_equal_points():
    strokes = Strokes.from_lists([[([7], [9]), ([1, 2], [3, 4])]], [RECOGNIZED])
    assert as_lists(strokes) == [[((7, 7), (9, 9)), ((1, 2), (3, 4))]]
    assert Strokes.from_lists([[([7], [9])]]).recognized.tolist() == [UNKNOWN]


def test_a_drawing_without_strokes_is_blank_but_there():
    strokes = Strokes.from_lists([[], [([1, 2], [3, 4])], []])
    assert len(strokes) == 3
    assert as_lists(strokes.take(np.array([2, 1]))) == [[], [((1, 2), (3, 4))]]


@given(_DRAWINGS, _DRAWINGS, st.data())
def test_drawings_that_differ_are_found(drawings, others, data):
    count = min(len(drawings), len(others))
    flags = st.lists(st.integers(0, 2), min_size=count, max_size=count)
    one, other = ([*zip(lists, data.draw(flags), strict=False)] for lists in (drawings, others))
    kept = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    other = [a if same else b for a, b, same in zip(one, other, kept, strict=True)]
    differs = Strokes.from_lists(*zip(*one, strict=True)).differs(
        Strokes.from_lists(*zip(*other, strict=True))
    )
    assert differs.tolist() == [a != b for a, b in zip(one, other, strict=True)]


def test_the_same_points_in_other_strokes_differ():
    one = [([1, 2], [3, 4]), ([5, 6, 7], [8, 9, 9])]
    other = [([1, 2, 5], [3, 4, 8]), ([6, 7], [9, 9])]
    assert Strokes.from_lists([one, [], one]).differs(
        Strokes.from_lists([one, [], other])
    ).tolist() == [False, False, True]
