"""Index the records of a file of strokes: how long each one is, found in one pass over the file.

Records differ in length, so a row cannot be found without such an index. It is kept beside what is
built from the file, for other workers and later starts, and used as long as the file is the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError, RefusedError
from quickdraw_dist.data.drawings.strokes.arrays import ends

READ_BYTES = 1 << 23
"""Bytes read at a time. Over a network each read is a round trip."""

_MOST_RECORD_BYTES = 1 << 26
"""A record that does not end within 64 MiB is none: the longest raw one takes less than 1 MB."""

_STRIDE = 256
"""Records between two whose first byte is held in memory; those between are added up."""

_VERSION = "records 2"
"""Changes with the rules that say where a record ends: older indices are made again."""

FindEnds = Callable[[bytes, bool], NDArray[np.int64]]
"""From the bytes of consecutive records, and whether the file ends with them, to the end of every
complete record. Raises BadRecord."""


class BadRecord(Exception):  # noqa: N818 becomes an error where file and first row are known
    """A record that is not a drawing.

    Attributes:
        row: its number among the records given.
        byte: where it, or what is wrong in it, begins in the bytes given.
        problem: what is wrong.
    """

    def __init__(self, row: int, byte: int, problem: str) -> None:
        super().__init__(row, byte, problem)
        self.row, self.byte, self.problem = row, byte, problem

    def after(self, rows: int, first_byte: int) -> BadRecord:
        """Return the same for a file in which the bytes given follow others."""
        return BadRecord(self.row + rows, self.byte + first_byte, self.problem)

    def corrupt(self, url: str) -> CorruptError:
        """Return the error of a file, in which `row` and `byte` are those of the whole file."""
        problem = f"row {self.row:,}, byte {self.byte:,}: {self.problem}"
        remedy = "Fetch it again, or correct this row if you made the file"
        return CorruptError(url, None, problem, remedy, row=self.row, byte=self.byte)


@dataclass(frozen=True, eq=False)
class RecordIndex:
    """The lengths of a file's records, which follow each other from its first byte to its last."""

    lengths: NDArray[np.unsignedinteger]  # (records,) bytes

    @staticmethod
    def of(lengths: NDArray[np.integer]) -> RecordIndex:
        """Return the index of records of these lengths, in the smallest type that holds them."""
        return RecordIndex(lengths.astype(np.min_scalar_type(lengths.max(initial=0))))

    @cached_property
    def _strides(self) -> NDArray[np.int64]:
        """First byte of every `_STRIDE`-th record, and the end of the file."""
        firsts = np.arange(0, len(self.lengths), _STRIDE)
        return ends(np.add.reduceat(self.lengths, firsts, dtype=np.int64))

    def edges(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the first byte of records `start` to `stop`, and their end: (stop - start + 1,).

        Raises:
            IndexError: there are no such records.
        """
        if not 0 <= start <= stop <= len(self.lengths):
            raise IndexError(f"records {start} to {stop} of {len(self.lengths)}")
        stride = start // _STRIDE
        before = int(self.lengths[stride * _STRIDE : start].sum())
        first = int(self._strides[stride]) + before if len(self.lengths) else 0
        return first + ends(self.lengths[start:stop])

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first byte of records `start` to `stop`, and the byte after them.

        Raises:
            IndexError: there are no such records.
        """
        edges = self.edges(start, stop)
        return int(edges[0]), int(edges[-1])

    def to_bytes(self, stamp: str) -> bytes:
        """Return the contents of an index file, for a class file with this `storage.stamp`."""
        return zlib.compress(_head(stamp) + self.lengths.astype("<u4").tobytes())

    @staticmethod
    def from_bytes(data: bytes, stamp: str) -> RecordIndex | None:
        """Return the index of a class file with this stamp; None if the contents of an index file
        are those of another, of another release, or damaged."""
        try:
            contents = zlib.decompress(data)  # checks its own checksum
        except zlib.error:
            return None
        head = _head(stamp)
        if not contents.startswith(head):
            return None
        return RecordIndex.of(np.frombuffer(contents, "<u4", offset=len(head)))


def _head(stamp: str) -> bytes:
    return f"{_VERSION}, {stamp}\n".encode()


def load_index(index_url: str, stamp: str) -> RecordIndex | None:
    """Return the stored index of a file with this stamp; None if there is none."""
    try:
        return RecordIndex.from_bytes(storage.read(index_url), stamp)
    except (FileNotFoundError, NotADirectoryError):
        return None


def make_index(
    url: str, size: int, find_ends: FindEnds, progress: Callable[[int], object] = lambda _: None
) -> RecordIndex:
    """Find the records of a file, reading it once from begin to end.

    A range of an object has no checksum of its own, so an object is read again until the bytes
    have the checksum that its store keeps, or until two readings agree on what is wrong.

    Args:
        url: address of the file.
        size: its bytes.
        find_ends: the file format's function.
        progress: called with the number of bytes just read.

    Raises:
        CorruptError: the file is empty, cut off, or has a record that does not end.
        RefusedError: it is a folder, or not readable.
        StorageError: the store failed.
    """
    if not size:
        raise CorruptError(url, None, "is empty", "Fetch it again")
    known = storage.object_crc32c(url) if storage.is_remote(url) else None
    seen: set[tuple[int, int, str]] = set()
    for _ in range(storage.READINGS):
        crcs: list[int] = []
        try:
            lengths = np.concatenate(list(_walk(url, size, find_ends, crcs, progress)))
        except BadRecord as error:
            found = error.row, error.byte, error.problem
            if found in seen or not storage.is_remote(url):
                raise error.corrupt(url) from None
            seen.add(found)
            continue
        except (IsADirectoryError, PermissionError) as error:
            problem = str(error.strerror)
            raise RefusedError(url, None, problem, "Make it a readable file of strokes") from None
        if known is None or crcs == [known]:
            return RecordIndex.of(lengths)
    raise CorruptError(url, None, f"read {storage.READINGS} times, never with its own crc32c")


def _walk(
    url: str, size: int, find_ends: FindEnds, crcs: list[int], progress: Callable[[int], object]
) -> Iterable[NDArray[np.int64]]:
    """Yield the lengths of all records, (n,) at a time; append the file's CRC-32C to `crcs`."""
    rest, row, read, crc = b"", 0, 0, 0
    while read < size:
        data = storage.read_range(url, read, min(READ_BYTES, size - read))
        if not data:
            raise BadRecord(row, read, f"the file ends here, it was {size:,} bytes long")
        first = read - len(rest)
        read, crc = read + len(data), storage.crc32c(data, crc)
        rest += data
        try:
            found = find_ends(rest, read == size)
        except BadRecord as error:
            raise error.after(row, first) from None
        if len(found):
            yield np.diff(found, prepend=0)
            row, rest = row + len(found), rest[found[-1] :]
        elif len(rest) > _MOST_RECORD_BYTES:
            problem = f"the record does not end within {_MOST_RECORD_BYTES >> 20} MiB"
            raise BadRecord(row, first, problem)
        progress(len(data))
    crcs.append(crc)
