"""Read official bitmaps: one `.npy` file per class, (N, 784) uint8, in a folder or under gs://."""

from __future__ import annotations

import io
import tokenize
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError, RefusedError
from quickdraw_dist.data.drawings.classes import ClassFiles, FileSource
from quickdraw_dist.data.drawings.drawing import PIXELS, SIDE, Content, Rows

_FIRST_READ_BYTES = 512
"""Enough for every header seen: 80 bytes in the official files, 128 from numpy.save."""

_BAD_HEADER = (ValueError, TypeError, SyntaxError, tokenize.TokenError)
"""What numpy's header parser raises for bytes that are no header."""

_OPENERS = 16
"""Headers read in parallel: over a network each one is a round trip."""


@dataclass(frozen=True)
class Bitmaps(FileSource):
    """A `Source` over `.npy` files."""

    counts: tuple[int, ...]
    headers: tuple[bytes, ...]

    @property
    def content(self) -> Content:
        """Bitmaps."""
        return "bitmaps"

    def header(self, label: int) -> bytes:
        """Return the bytes of a class's file before its first row."""
        return self.headers[label]

    def span(self, label: int, start: int, stop: int) -> tuple[int, int]:
        """Return the first byte of rows `start` to `stop` of a class, and the byte after them."""
        first = len(self.headers[label])
        return first + start * PIXELS, first + stop * PIXELS

    def read(self, label: int, start: int, stop: int) -> Rows:
        """Return rows `start` to `stop` of a class, (stop - start, 28, 28) uint8.

        Raises:
            CorruptError: the file is shorter than its header says.
            StorageError: the store failed.
        """
        data = self.files.read_rows(label, self.span(label, start, stop), (start, stop))
        pixels = np.frombuffer(data, np.uint8).reshape(-1, SIDE, SIDE)
        return Rows(pixels, storage.crc32c(data))


def open_bitmaps(files: ClassFiles) -> Bitmaps:
    """Read and check the header of every file.

    Raises:
        CorruptError: a header, shape, dtype or length that is not a bitmap file's.
        RefusedError: a file cannot be read.
        StorageError: the store did not answer; DeniedError: not for this account.
    """
    with ThreadPoolExecutor(_OPENERS) as pool:
        opened = list(pool.map(_open_one, map(files.url, range(len(files.sizes))), files.sizes))
    counts = tuple(count for count, _ in opened)
    files.check_official_counts(counts)
    return Bitmaps(files, counts, tuple(header for _, header in opened))


def _open_one(url: str, size: int) -> tuple[int, bytes]:
    """Return the number of rows and the header bytes of one file."""
    try:
        start = _first_bytes(url, min(size, _FIRST_READ_BYTES))
    except (IsADirectoryError, PermissionError) as error:
        raise RefusedError(url, None, str(error.strerror), "Make it a readable .npy file") from None
    file = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    except _BAD_HEADER as error:
        raise CorruptError(url, None, f"not a .npy file: {error}") from None
    if shape[1:] not in ((PIXELS,), (SIDE, SIDE)) or dtype != np.uint8 or fortran:
        order = "Fortran" if fortran else "C"
        expected = "(N, 784) or (N, 28, 28), uint8, C order"
        problem = f"holds shape {shape}, {dtype}, {order} order; a bitmap file holds {expected}"
        raise CorruptError(url, None, problem)
    needed = file.tell() + shape[0] * PIXELS
    if size != needed:
        kind = "truncated" if size < needed else "other bytes follow the drawings"
        promised = f"{shape[0]:,} drawings = {needed:,} bytes"
        problem = f"{size:,} bytes, but its header promises {promised}; {kind}"
        raise CorruptError(url, None, problem, "Fetch it again")
    return int(shape[0]), start[: file.tell()]


def _first_bytes(url: str, length: int) -> bytes:
    """Return the first bytes of a file. A range of an object has no checksum of its own, so it is
    read until two readings agree."""
    seen: set[bytes] = set()
    for _ in range(storage.READINGS):
        data = storage.read_range(url, 0, length)
        if data in seen:
            return data
        if len(data) == length:
            seen.add(data)
    raise CorruptError(url, None, f"no two readings of its first {length:,} bytes agree")
