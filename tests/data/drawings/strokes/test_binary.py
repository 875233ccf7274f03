"""The official binary files: written field by field, read back whole and in any ranges."""

from __future__ import annotations

import io
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.data.drawings.strokes import binary
from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.drawings.strokes.records import BadRecord
from tests.support.data import stroke_files as support


def edges_of(data: bytes) -> np.ndarray:
    """Where the records begin, and the end."""
    return np.concatenate([[0], binary.find_ends(data, True)])


def parsed(data: bytes) -> Strokes:
    """All drawings of a file."""
    return binary.parse(data, edges_of(data))


def as_published(data: bytes) -> tuple[support.Lists, list[int]]:
    """A file read one field after the other, as Google's own reader does."""
    file, drawings, flags = io.BytesIO(data), [], []
    while head := file.read(17):
        _, _, flag, _, strokes = struct.unpack("<Q2sbIH", head)
        flags.append(flag)
        drawings.append([])
        for _ in range(strokes):
            (points,) = struct.unpack("<H", file.read(2))
            drawings[-1].append((list(file.read(points)), list(file.read(points))))
    return drawings, flags


@given(made=support.drawings(), data=st.data())
def test_any_drawings_come_back_from_any_range(made: Strokes, data: st.DataObject) -> None:
    """A group reads one range of rows, wherever it begins."""
    written = support.to_bin(support.as_lists(made), made.recognized.tolist())
    assert as_published(written) == (support.as_lists(made), made.recognized.tolist())
    edges = edges_of(written)
    assert len(edges) == len(made) + 1
    start = data.draw(st.integers(0, len(made)))
    stop = data.draw(st.integers(start, len(made)))
    piece = written[edges[start] : edges[stop]]
    read = binary.parse(piece, edges[start : stop + 1] - edges[start])
    assert support.equal(read, made.slice(start, stop))
    assert (read.x.dtype, read.points.dtype, read.strokes.dtype) == (np.uint8, "u2", "u2")


@given(made=support.drawings(least=1), data=st.data())
def test_records_are_found_in_pieces(made: Strokes, data: st.DataObject) -> None:
    """A file is read a few megabytes at a time: a piece may end in any field."""
    written = support.to_bin(support.as_lists(made), made.recognized.tolist())
    edges = edges_of(written).tolist()
    cut = data.draw(st.integers(1, len(written)))
    found = binary.find_ends(written[:cut], False)
    rest = binary.find_ends(written[found[-1] if len(found) else 0 :], True)
    whole = [*found, *(rest + (found[-1] if len(found) else 0))]
    assert [0, *whole] == edges
    if cut not in edges:
        with pytest.raises(BadRecord) as caught:
            binary.find_ends(written[:cut], True)
        error = caught.value
        assert (error.row, error.byte) == (len(found), edges[len(found)])
        assert error.problem == f"the file ends within this record, at byte {cut:,}"


@given(made=support.drawings())
def test_a_dot_of_one_point_becomes_two(made: Strokes) -> None:
    """Segments need two points; hand-made files have strokes of one."""
    lists = [
        [(x[:1], y[:1]) if len(x) == 2 and x[0] == x[1] and y[0] == y[1] else (x, y) for x, y in d]
        for d in support.as_lists(made)
    ]
    assert support.equal(parsed(support.to_bin(lists, made.recognized.tolist())), made)


def test_the_longest_strokes() -> None:
    """766 points are the most in the official files; the format takes 65,535."""
    long = [([7] * 766, list(range(256)) * 2 + [9] * 254)]
    most = [([1] * 65_535, [2] * 65_535)]
    many = [([1, 2], [3, 4])] * 3_000
    lists: support.Lists = [long, most, [], many]
    read = parsed(support.to_bin(lists, [1, 0, 1, 0]))
    assert support.as_lists(read) == lists
    assert read.recognized.tolist() == [1, 0, 1, 0]


GOOD = support.to_bin([[([1, 2], [3, 4])], [([5, 6, 7], [8, 9, 9]), ([1, 1], [2, 2])]], [1, 0])
"""Two drawings of 23 and 31 bytes."""


def changed(at: int, to: int) -> bytes:
    """The file with another byte."""
    return GOOD[:at] + bytes([to]) + GOOD[at + 1 :]


@pytest.mark.parametrize(
    ("data", "row", "byte", "problem"),
    [
        (changed(10, 7), 0, 0, "recognized is 7, neither 0 nor 1; not a .bin file?"),
        (changed(23 + 10, 255), 1, 23, "recognized is 255, neither 0 nor 1; not a .bin file?"),
        (changed(23 + 17, 0), 1, 23, "stroke 0 has no points"),
        (changed(23 + 17, 200), 1, 23, "stroke 0 does not fit into its record"),
        (changed(23 + 25, 0), 1, 23, "stroke 1 has no points"),
        (changed(23 + 25, 1), 1, 23, "the next record does not begin after its strokes"),
        (changed(15, 2), 0, 0, "stroke 1 does not fit into its record"),
    ],
)
def test_a_bad_record_is_named(data: bytes, row: int, byte: int, problem: str) -> None:
    """In a file whose records are known: it has changed, or a bit has flipped."""
    with pytest.raises(BadRecord) as caught:
        binary.parse(data, edges_of(GOOD))
    error = caught.value
    assert (error.row, error.byte, error.problem) == (row, byte, problem)


def test_a_file_of_another_kind_is_not_followed_far() -> None:
    """A saved web page has no records."""
    with pytest.raises(BadRecord) as caught:
        binary.find_ends(b"<!DOCTYPE html><html>404</html>" * 1000, False)
    assert (caught.value.row, caught.value.byte) == (0, 0)


def test_records_of_the_sizes_that_the_layout_promises() -> None:
    """17 bytes, 2 per stroke and 2 per point: the official files have 116.8 per drawing."""
    sizes = [b - a for a, b in pairwise(edges_of(GOOD).tolist())]
    assert sizes == [17 + 2 * (1 + 2), 17 + 2 * (2 + 5)]
