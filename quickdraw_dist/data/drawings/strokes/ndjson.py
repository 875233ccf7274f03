"""Read official `.ndjson` files, a JSON object per line: simplified drawings, and raw ones.

`drawing` is a list of strokes: [[x, ...], [y, ...]] in integers of 0 to 255 when simplified, with a
third list, of times, and x and y in any unit when raw. Raw drawings are simplified as the official
files were. `recognized` may be missing, as in lines recovered without it; so may `word`, but if it
is there, it is the class's name. Blank lines, of nothing but white space, belong to the record
before them.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.data.drawings.strokes.arrays import (
    RECOGNIZED,
    UNKNOWN,
    UNRECOGNIZED,
    Strokes,
)
from quickdraw_dist.data.drawings.strokes.records import BadRecord
from quickdraw_dist.data.drawings.strokes.simplify import simplify

_NEWLINE = ord("\n")

_WHITE = b" \t\r\n"
"""White space in JSON."""

_MOST = (1 << 16) - 1
"""Most points of a stroke, and most strokes of a drawing: shards keep both as uint16."""

_FLAGS = {True: RECOGNIZED, False: UNRECOGNIZED, None: UNKNOWN}

_Stroke = tuple[bytes, bytes]
"""x and y of its points."""


def find_ends(data: bytes, at_end: bool) -> NDArray[np.int64]:
    """Return the end of every complete record, which is where the next one begins.

    Args:
        data: consecutive records, perhaps with the beginning of another one.
        at_end: whether the file ends with them.

    Raises:
        BadRecord: the file ends within a record, has none, or begins with a byte order mark.
    """
    if data.startswith(codecs.BOM_UTF8):  # of a file: no other record begins with it
        raise BadRecord(0, 0, "a byte order mark; save the file as UTF-8 without one")
    octets = np.frombuffer(data, np.uint8)
    lines: NDArray[np.int64] = np.concatenate([[0], np.flatnonzero(octets == _NEWLINE) + 1])
    if lines[-1] == len(data):
        lines = lines[:-1]
    blank = octets[lines] == _NEWLINE
    after = np.append(lines[1:], len(data))
    for line in np.flatnonzero(np.isin(octets[lines], [*_WHITE]) & ~blank):
        blank[line] = not data[lines[line] : after[line]].strip(_WHITE)
    records: NDArray[np.int64] = lines[~blank]
    if not at_end:
        return records[1:]
    if not len(records):
        raise BadRecord(0, 0, "no drawing in it")
    if not data[records[-1] :].rstrip().endswith(b"}"):
        problem = f"the file ends within this record, at byte {len(data):,}"
        raise BadRecord(len(records) - 1, int(records[-1]), problem)
    return np.append(records[1:], len(data))


def parse(data: bytes, edges: NDArray[np.int64], word: str) -> Strokes:
    """Return the drawings of consecutive records.

    Args:
        data: the records.
        edges: first byte of every record, and the end of the last one, (n + 1,).
        word: the class's name.

    Raises:
        BadRecord: a record is not JSON, of another class, or not a drawing; the problem says why.
        RefusedError: orjson is not installed.
    """
    loads = _loads()
    xs, ys, points, counts, flags = [], [], [], [], []
    for row, start in enumerate(edges[:-1].tolist()):
        try:
            record = loads(data[start : edges[row + 1]])
            drawing = _strokes(record, word)
            flags.append(_FLAGS[record.get("recognized")])
        except (KeyError, TypeError):
            raise BadRecord(row, start, "recognized is neither true nor false") from None
        except ValueError as error:  # orjson's is one, too
            raise BadRecord(row, start, str(error)) from None
        counts.append(len(drawing))
        for x, y in drawing:
            xs.append(x)
            ys.append(y)
            points.append(len(x))
    return Strokes(
        np.frombuffer(b"".join(xs), np.uint8),
        np.frombuffer(b"".join(ys), np.uint8),
        np.array(points, np.uint16),
        np.array(counts, np.uint16),
        np.array(flags, np.uint8),
    )


def _strokes(record: Any, word: str) -> list[_Stroke]:
    """Return a record's strokes, each of two points or more.

    Raises:
        ValueError: it is of another class, or not a drawing.
    """
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    if record.get("word", word) != word:
        raise ValueError(f"a drawing of {record['word']!r} in the file of {word!r}")
    drawing = record.get("drawing")
    if not isinstance(drawing, list) or not all(isinstance(stroke, list) for stroke in drawing):
        raise ValueError("drawing is missing or not a list of strokes")
    if len(drawing) > _MOST:
        raise ValueError(f"{len(drawing):,} strokes, {_MOST:,} at most can be stored")
    if any(len(stroke) == 3 for stroke in drawing):
        strokes = _simplified(drawing)
    else:
        strokes = [_stroke(number, stroke) for number, stroke in enumerate(drawing)]
    for number, (x, _) in enumerate(strokes):
        if len(x) > _MOST:
            problem = f"stroke {number} has {len(x):,} points, {_MOST:,} at most can be stored"
            raise ValueError(problem)
    return [(x * 2, y * 2) if len(x) == 1 else (x, y) for x, y in strokes]  # a dot: two points


def _stroke(number: int, stroke: list[Any]) -> _Stroke:
    """Return x and y of a simplified stroke; ValueError if it is none."""
    if len(stroke) != 2 or not (type(stroke[0]) is type(stroke[1]) is list):
        raise ValueError(f"stroke {number} is not a list of x and a list of y")
    try:
        x, y = bytes(stroke[0]), bytes(stroke[1])
    except (ValueError, TypeError):
        problem = f"stroke {number} has a coordinate that is not an integer of 0 to 255"
        raise ValueError(problem) from None
    if len(x) != len(y):
        raise ValueError(f"stroke {number} has {len(x):,} x and {len(y):,} y")
    if not x:
        raise ValueError(f"stroke {number} has no points")
    return x, y


def _simplified(drawing: list[Any]) -> list[_Stroke]:
    """Return the strokes of a raw drawing, simplified; ValueError if it is none."""
    for number, stroke in enumerate(drawing):
        if len(stroke) != 3 or any(type(values) is not list for values in stroke):
            raise ValueError(f"stroke {number} is not three lists, as the others are: x, y, times")
        if len(stroke[0]) != len(stroke[1]):
            raise ValueError(f"stroke {number} has {len(stroke[0]):,} x and {len(stroke[1]):,} y")
        if not {*map(type, stroke[0]), *map(type, stroke[1])} <= {int, float}:  # numpy takes "1"
            raise ValueError(f"stroke {number} has a coordinate that is not a number")
    return [(x.tobytes(), y.tobytes()) for x, y in simplify(drawing)]


def _loads() -> Callable[[bytes], Any]:
    """Return orjson's parser: several times as fast as the standard library's."""
    try:
        import orjson
    except ModuleNotFoundError:
        problem = "reading .ndjson needs the package orjson, which is not installed"
        raise RefusedError(
            "source", None, problem, "Run pip install 'quickdraw-dist[strokes]', or use .bin files"
        ) from None
    loads: Callable[[bytes], Any] = orjson.loads
    return loads
