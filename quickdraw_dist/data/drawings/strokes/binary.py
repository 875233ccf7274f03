"""Read the official binary files of simplified drawings, `.bin`.

The layout is that of binary_file_parser.py, the reader that Google publishes beside the data.
A record, little-endian and without padding, is a header of 17 bytes

    key_id uint64, countrycode 2 characters, recognized int8, timestamp uint32, strokes uint16

followed for every stroke by its number of points, uint16, then their x, then their y, a byte each.
Records follow each other from the first byte of a file to its last.

No official file was at hand to check this against. What agrees: the official files' mean size,
116.8 bytes per drawing, is what simplified drawings take in this layout. What is assumed: the byte
order (the published reader uses the machine's), and that `recognized` is only ever 0 or 1 (anything
else is refused as a bad record, which also stops a reader that has lost its place).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.data.drawings.strokes.arrays import Strokes, ends, ragged
from quickdraw_dist.data.drawings.strokes.records import BadRecord

_RECOGNIZED, _STROKES, _HEADER_BYTES = 10, 15, 17
"""Byte of a field in a record, and where its first stroke begins."""


def find_ends(data: bytes, at_end: bool) -> NDArray[np.int64]:
    """Return the end of every complete record.

    Args:
        data: consecutive records, perhaps with the beginning of another one.
        at_end: whether the file ends with them.

    Raises:
        BadRecord: a record's `recognized` is neither 0 nor 1, or the file ends within a record.
    """
    found: list[int] = []
    start, size = 0, len(data)
    try:
        while start < size:
            if data[start + _RECOGNIZED] > 1:
                raise _bad_flag(len(found), start, data[start + _RECOGNIZED])
            end = start + _HEADER_BYTES
            for _ in range(data[start + _STROKES] | data[start + _STROKES + 1] << 8):
                end += 2 + 2 * (data[end] | data[end + 1] << 8)
            if end > size:
                break
            found.append(end)
            start = end
    except IndexError:
        pass  # the last record is not complete
    if at_end and start != size:
        raise BadRecord(len(found), start, f"the file ends within this record, at byte {size:,}")
    return np.array(found, np.int64)


def parse(data: bytes, edges: NDArray[np.int64]) -> Strokes:
    """Return the drawings of consecutive records.

    Args:
        data: the records.
        edges: first byte of every record, and the end of the last one, (n + 1,).

    Raises:
        BadRecord: a record has a stroke without points, does not end where the next one begins, or
            its `recognized` is neither 0 nor 1.
    """
    octets = np.frombuffer(data, np.uint8)
    starts = edges[:-1]
    recognized = octets[starts + _RECOGNIZED]
    if (recognized > 1).any():
        row = int((recognized > 1).argmax())
        raise _bad_flag(row, int(starts[row]), int(recognized[row]))
    strokes = _uint16(octets, starts + _STROKES)
    x_at, points = _walk_strokes(octets, edges, strokes)
    x = ragged(x_at, points)
    y = x + np.repeat(points.astype(np.int64), points)
    single = points == 1
    if single.any():  # a dot is two equal points
        twice = np.repeat(np.where(single, 2, 1), points)
        x, y, points = np.repeat(x, twice), np.repeat(y, twice), np.where(single, 2, points)
    return Strokes(octets[x], octets[y], points.astype(np.uint16), strokes, recognized)


def _walk_strokes(
    octets: NDArray[np.uint8], edges: NDArray[np.int64], strokes: NDArray[np.uint16]
) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    """Return the first byte of every stroke's x, and its number of points, each (strokes,).

    Takes all first strokes at once, then all second ones, and so on: as many turns as the longest
    drawing has strokes, each only over the drawings that have so many.
    """
    first = ends(strokes)
    x_at, points = np.empty(first[-1], np.int64), np.empty(first[-1], np.uint16)
    rows = strokes.nonzero()[0]
    at = edges[:-1] + _HEADER_BYTES  # where the next stroke of every drawing begins
    turn = 0
    while len(rows):
        here, stop = at[rows], edges[rows + 1]
        beyond = here + 2 > stop
        if not beyond.any():
            counts = _uint16(octets, here)
            at[rows] = after = here + 2 + 2 * counts.astype(np.int64)
            beyond = after > stop
        wrong = beyond if beyond.any() else counts == 0
        if wrong.any():
            row = int(rows[wrong.argmax()])
            what = "does not fit into its record" if beyond.any() else "has no points"
            raise BadRecord(row, int(edges[row]), f"stroke {turn} {what}")
        of_turn = first[rows] + turn
        x_at[of_turn], points[of_turn] = here + 2, counts
        turn += 1
        rows = rows[strokes[rows] > turn]
    if (at != edges[1:]).any():
        row = int((at != edges[1:]).argmax())
        raise BadRecord(row, int(edges[row]), "the next record does not begin after its strokes")
    return x_at, points


def _uint16(octets: NDArray[np.uint8], at: NDArray[np.int64]) -> NDArray[np.uint16]:
    return octets[at] | octets[at + 1].astype(np.uint16) << np.uint16(8)


def _bad_flag(row: int, byte: int, flag: int) -> BadRecord:
    return BadRecord(row, byte, f"recognized is {flag}, neither 0 nor 1; not a .bin file?")
