"""Encode and decode blocks: drawings, labels and rows as members of a tar.

Bitmaps are one array. Pen strokes are three, of bytes, since a member of a tar takes 770 bytes more
than its contents:

    dxdy     (2, points)    x and y of every point less those of the point before, modulo 256, end
                            to end over the whole block; the first point's are themselves
    points   (2, strokes)   points per stroke: low bytes, high bytes
    strokes  (3, drawings)  strokes per drawing: low bytes, high bytes; then `recognized`

gzip saves a sixth of differences, next to nothing of coordinates, and most of bytes that are nearly
all 0 if they lie together.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.base.storage import crc32c
from quickdraw_dist.data.drawings import raster
from quickdraw_dist.data.drawings.drawing import PIXELS, SIDE, Drawings
from quickdraw_dist.data.drawings.strokes.arrays import UNKNOWN, Strokes
from quickdraw_dist.data.drawings.strokes.totals import Totals
from quickdraw_dist.data.shards.members import (
    UNREADABLE,
    read_array,
    read_members,
    write_array,
    write_member,
)

_IDENTITY_DTYPES: dict[str, np.dtype[Any]] = {"labels": np.dtype("<u2"), "rows": np.dtype("<u4")}

_DTYPES: dict[str, dict[str, np.dtype[Any]]] = {
    "bitmaps": {"drawings": np.dtype(np.uint8), **_IDENTITY_DTYPES},
    "strokes": {
        "dxdy": np.dtype(np.uint8),
        "points": np.dtype(np.uint8),
        "strokes": np.dtype(np.uint8),
        **_IDENTITY_DTYPES,
    },
}
"""Type of every array of a block of either content, in the order of its file."""

BYTES_PER_DRAWING = PIXELS + sum(dtype.itemsize for dtype in _IDENTITY_DTYPES.values())
"""Memory of a decoded block of bitmaps per drawing: pixels, label and row."""

STROKES_SAMPLED = 16
"""One of this many drawings of a block of strokes, its first among them, is rendered for the mean
and deviation of the dataset's pixels: a sample that any worker takes alike."""


@dataclass(frozen=True)
class Block:
    """Decoded drawings with their identities."""

    drawings: Drawings
    labels: NDArray[np.uint16]  # (n,)
    rows: NDArray[np.uint32]  # (n,)

    def slice(self, start: int, stop: int) -> Block:
        """Return drawings `start` to `stop` of the block, without a copy."""
        piece = slice(start, stop)
        drawings = self.drawings
        return Block(
            drawings.slice(start, stop) if isinstance(drawings, Strokes) else drawings[piece],
            self.labels[piece],
            self.rows[piece],
        )

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The drawings of a block of bitmaps, (n, 28, 28)."""
        assert isinstance(self.drawings, np.ndarray), "strokes have no pixels"
        return self.drawings

    @property
    def strokes(self) -> Strokes:
        """The drawings of a block of strokes."""
        assert isinstance(self.drawings, Strokes), "bitmaps have no strokes"
        return self.drawings

    @property
    def totals(self) -> Totals:
        """Numbers of strokes, points and tiles of the block; zeros for bitmaps."""
        return Totals.of(self.drawings) if isinstance(self.drawings, Strokes) else Totals()

    @property
    def crc(self) -> int:
        """CRC-32C of the contents, which does not depend on the compression."""
        crc = 0
        for _, array in self.stored():
            crc = crc32c(array.data, crc)
        return crc

    def stored(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield the name and values of each array, in the type and order of its file."""
        arrays: dict[str, NDArray[Any]] = {"labels": self.labels, "rows": self.rows}
        if isinstance(self.drawings, Strokes):
            content, strokes = "strokes", self.drawings
            arrays |= {
                "dxdy": np.diff([strokes.x, strokes.y], prepend=np.uint8(0)),
                "points": np.stack(_apart(strokes.points)),
                "strokes": np.stack([*_apart(strokes.strokes), strokes.recognized]),
            }
        else:
            content = "bitmaps"
            arrays["drawings"] = self.drawings
        for name, dtype in _DTYPES[content].items():
            yield name, np.ascontiguousarray(arrays[name], dtype)


def encode(block: Block, key: str, compression: str) -> bytes:
    """Return a block as one WebDataset sample, a member KEY.drawings.npy[.gz] and so on per
    array."""
    return b"".join(
        write_array(f"{key}.{name}", array, compression) for name, array in block.stored()
    )


def encode_per_drawing(block: Block) -> bytes:
    """Return the drawings as one sample each, `LLLLL-RRRRRRRRRR.png` and `.cls`, for readers of
    other projects; this one reads them back as external data."""
    members = []
    for pixels, label, row in zip(block.pixels, block.labels, block.rows, strict=True):
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "png")
        members.append(write_member(f"{label:05d}-{row:010d}.png", png.getvalue()))
        members.append(write_member(f"{label:05d}-{row:010d}.cls", str(label).encode()))
    return b"".join(members)


def decode(data: bytes | memoryview, count: int) -> Block:
    """Return the block of `count` drawings in these bytes, compressed or not, of either content.

    Args:
        data: the members, from the first header to the end of the last padding.
        count: drawings of the block, as the manifest says.

    Raises:
        CorruptError: the bytes are no block of `count` drawings.
    """
    try:
        stored: dict[str, tuple[memoryview, bool]] = {}
        for name, payload in read_members(memoryview(data)):
            stored[name.split(".", 2)[1]] = payload, name.endswith(".gz")
        content = "strokes" if "dxdy" in stored else "bitmaps"
        if stored.keys() != _DTYPES[content].keys():
            raise ValueError(f"has members {', '.join(stored)}")
        read = partial(_read, stored, _DTYPES[content])
        labels, rows = read("labels", count), read("rows", count)
        drawings = (
            _read_strokes(read, count)
            if content == "strokes"
            else read("drawings", count, SIDE, SIDE)
        )
    except UNREADABLE as error:
        raise CorruptError(
            "contents", None, f"not a block of {count:,} drawings: {error}"
        ) from None
    return Block(drawings, labels.astype(np.uint16, copy=False), rows.astype(np.uint32, copy=False))


def _read(
    stored: dict[str, tuple[memoryview, bool]],
    dtypes: dict[str, np.dtype[Any]],
    name: str,
    *shape: int,
) -> NDArray[Any]:
    payload, gzipped = stored[name]
    try:
        return read_array(payload, dtypes[name], shape, gzipped=gzipped)
    except UNREADABLE as error:
        raise ValueError(f"{name} {error}") from None


def _read_strokes(read: Callable[..., NDArray[Any]], count: int) -> Strokes:
    """Return strokes from their arrays: the counts say how long the others are.

    Raises:
        ValueError: an array has another length, or values that no strokes have.
    """
    *halves, recognized = read("strokes", 3, count)
    if recognized.max(initial=0) > UNKNOWN:
        raise ValueError(f"strokes has a recognized of {recognized.max()}, not 0, 1 or 2")
    strokes = _together(*halves)
    points = _together(*read("points", 2, int(strokes.sum())))
    if points.min(initial=2) < 2:
        raise ValueError(f"points has a stroke of {points.min()}, not two or more")
    differences = read("dxdy", 2, int(points.sum()))
    # numpy adds up wide integers four times as fast as bytes.
    x, y = np.cumsum(differences, axis=1, dtype=np.uint32).astype(np.uint8)
    return Strokes(x, y, points, strokes, recognized)


def _apart(counts: NDArray[np.uint16]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the low bytes and the high bytes of counts, (n,) each."""
    return counts.astype(np.uint8), (counts >> np.uint16(8)).astype(np.uint8)


def _together(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Return counts from their low and high bytes, (n,)."""
    return low | high.astype(np.uint16) << np.uint16(8)


def pixel_sums(drawings: Drawings) -> NDArray[np.int64]:
    """Return the sum of the pixels of a block and the sum of their squares, (2,)."""
    if isinstance(drawings, Strokes):
        drawings = raster.plain(drawings.take(np.arange(0, len(drawings), STROKES_SAMPLED)))
    # Even the squares of a quarter of a drawing sum to less than 2^24: exact in float32,
    # whatever order BLAS adds in. In slices that stay in the processor's cache.
    quarters, sums = drawings.reshape(-1, PIXELS // 4), np.zeros(2)
    ones = np.ones(PIXELS // 4, np.float32)
    for at in range(0, len(quarters), 1024):
        values = quarters[at : at + 1024].astype(np.float32)
        for n, of_quarters in enumerate((np.vecdot(values, ones), np.vecdot(values, values))):
            sums[n] += of_quarters.sum(dtype=np.float64)
    return sums.astype(np.int64)
