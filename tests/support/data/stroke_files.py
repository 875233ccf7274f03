"""Write small files of strokes in the official forms, for tests."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from quickdraw_dist.base.hashing import key64, random64
from quickdraw_dist.data.drawings.strokes.arrays import UNKNOWN, Strokes
from tests.support.data import strokes

Lists = list[list[tuple[list[int], list[int]]]]
"""Drawings as lists of strokes, each its x and its y."""


@st.composite
def drawings(draw: st.DrawFn, least: int = 0) -> Strokes:
    """Draw some drawings, of whose recognition something is known."""
    found = draw(strokes.drawings(least, 12))
    flags = draw(st.lists(st.integers(0, 1), min_size=len(found), max_size=len(found)))
    return Strokes.from_lists(found, flags)


def as_lists(drawn: Strokes) -> Lists:
    """Return drawings as lists."""
    found: Lists = []
    point = stroke = 0
    for count in drawn.strokes.tolist():
        found.append([])
        for points in drawn.points[stroke : stroke + count].tolist():
            ends = slice(point, point + points)
            found[-1].append((drawn.x[ends].tolist(), drawn.y[ends].tolist()))
            point += points
        stroke += count
    return found


def equal(some: Strokes, others: Strokes) -> bool:
    """Whether two are the same drawings."""
    return as_lists(some) == as_lists(others) and np.array_equal(some.recognized, others.recognized)


def to_bin(lists: Lists, recognized: Sequence[int]) -> bytes:
    """Return the contents of a `.bin` file, by the published layout field by field."""
    pieces = []
    for drawing, flag in zip(lists, recognized, strict=True):
        pieces.append(struct.pack("<Q2sbIH", 5 << 50, b"NZ", flag, 1_488_000_000, len(drawing)))
        for x, y in drawing:
            pieces.append(struct.pack(f"<H{len(x)}B{len(y)}B", len(x), *x, *y))
    return b"".join(pieces)


def to_ndjson(
    lists: Lists, recognized: Sequence[int], word: str, newline: str = "\n", **fields: object
) -> bytes:
    """Return the contents of a simplified `.ndjson` file."""
    lines = []
    for drawing, flag in zip(lists, recognized, strict=True):
        known = {} if flag == UNKNOWN else {"recognized": bool(flag)}
        record = {"word": word, "countrycode": "NZ", **known, **fields, "drawing": drawing}
        lines.append(json.dumps(record, separators=(",", ":")) + newline)
    return "".join(lines).encode()


def some_drawings(name: str, count: int) -> Strokes:
    """Return drawings that follow from class and row alone; no two are equal."""
    lists: Lists = []
    for values in random64(key64("strokes", name), count * 64).reshape(count, 64):
        numbers = (values >> np.uint64(8) & np.uint64(255)).tolist()
        sizes = [2 + number % 9 for number in numbers[: 1 + int(values[1] % 5)]]
        lists.append(
            [(numbers[i : i + n], numbers[32 - i : 32 - i + n]) for i, n in enumerate(sizes)]
        )
    return Strokes.from_lists(lists, [row % 7 != 3 for row in range(count)])


def write_strokes(folder: Path, counts: dict[str, int], suffix: str = ".bin") -> None:
    """Write stroke files like the official ones, one per class, in a new folder."""
    folder.mkdir(parents=True)
    for name, count in counts.items():
        made = some_drawings(name, count)
        lists, flags = as_lists(made), made.recognized.tolist()
        data = to_bin(lists, flags) if suffix == ".bin" else to_ndjson(lists, flags, name)
        (folder / f"{name}{suffix}").write_bytes(data)
