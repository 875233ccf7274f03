"""The size of a bitmap (28 x 28 uint8, white ink on black) and the protocol of a source."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.data.drawings.strokes.arrays import Strokes

SIDE = 28
"""Pixels along one side of a drawing."""

PIXELS = SIDE * SIDE
"""Pixels, and bytes, of one drawing."""

Content = Literal["bitmaps", "strokes"]
"""What a source or dataset holds of its drawings."""

Drawings = NDArray[np.uint8] | Strokes
"""n drawings: (n, 28, 28) pixels, or their pen strokes."""


class Rows(NamedTuple):
    """Consecutive drawings of a class, as read from a source."""

    drawings: Drawings
    crc32c: int
    """CRC-32C of the bytes that were read for them, as they lie in the file."""


def is_blank(drawings: Drawings) -> NDArray[np.bool_]:
    """Return which of some drawings have no ink, or no strokes: (n,)."""
    if isinstance(drawings, Strokes):
        return np.logical_not(drawings.strokes)
    return np.logical_not(drawings.reshape(len(drawings), PIXELS).view(np.uint64).any(axis=1))


class Source(Protocol):
    """Drawings of some classes, each addressed by (label, row); picklable for worker processes."""

    @property
    def url(self) -> str:
        """Address of the source, as the user typed it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""

    @property
    def content(self) -> Content:
        """Whether `read` returns bitmaps or strokes."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of drawings of every class."""

    @property
    def identity(self) -> str:
        """What distinguishes the source beside classes and counts; empty for files, which have
        checksums."""

    def file_url(self, label: int) -> str:
        """Return the address of a class's file; the source's own if there are no files."""

    def header(self, label: int) -> bytes:
        """Return the bytes of a class's file before its first row; empty if there is no file."""

    def checksum(self, label: int) -> int | None:
        """Return the CRC-32C of a class's whole file in its store; None if there is no file."""

    def span(self, label: int, start: int, stop: int) -> tuple[int, int]:
        """Return the first byte of rows `start` to `stop` in a class's file, and the byte after
        them. The spans of a class's rows follow each other from the end of its header to the end
        of its file. Without files, they are positions in what its checksums are of."""

    def read(self, label: int, start: int, stop: int) -> Rows:
        """Return rows `start` to `stop` of a class, none if they are equal.

        Raises:
            CorruptError: the file is shorter than it was when it was opened, or holds a record
                that is not a drawing.
            StorageError: the store did not answer within its retries.
        """
