"""Read official bitmaps: one `.npy` file per class, (N, 784) uint8, in a folder or under gs://."""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError, RefusedError, nearest
from quickdraw_dist.data.drawings.classes import official_class, official_names
from quickdraw_dist.data.drawings.drawing import PIXELS, SIDE, Content, Rows

_FIRST_READ_BYTES = 512
"""Enough for every header seen: 80 bytes in the official files, 128 from numpy.save."""

_BAD_HEADER = (ValueError, TypeError, SyntaxError, tokenize.TokenError)
"""What numpy's header parser raises for bytes that are no header."""

READINGS = 2 * storage.ATTEMPTS
"""Readings of a doubtful range at most: twice a request's attempts, as two may have to agree."""

_CONFLICT_COPY = re.compile(r"\.sync-conflict-|\(.*conflicted copy.*\)$|^~\$")
"""In names that sync tools and office programs give to copies of a file beside it."""

_OPENERS = 16
"""Headers read in parallel: over a network each one is a round trip."""


@dataclass(frozen=True)
class Bitmaps:
    """A `Source` over `.npy` files."""

    url: str
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    headers: tuple[bytes, ...]

    @property
    def content(self) -> Content:
        """Bitmaps."""
        return "bitmaps"

    @property
    def identity(self) -> str:
        """Empty: files have checksums."""
        return ""

    def file_url(self, label: int) -> str:
        """Return the address of a class's file."""
        return storage.join(self.url, f"{self.classes[label]}.npy")

    def header(self, label: int) -> bytes:
        """Return the bytes of a class's file before its first row."""
        return self.headers[label]

    def checksum(self, label: int) -> int | None:
        """Return the CRC-32C that the store has of a class's file; a local file is read for it."""
        return storage.object_crc32c(self.file_url(label))

    def span(self, label: int, start: int, stop: int) -> tuple[int, int]:
        """Return the first byte of rows `start` to `stop` of a class, and the byte after them."""
        first = len(self.headers[label])
        return first + start * PIXELS, first + stop * PIXELS

    def read(self, label: int, start: int, stop: int) -> Rows:
        """Return rows `start` to `stop` of a class, (stop - start, 28, 28) uint8."""
        url, (first, end) = self.file_url(label), self.span(label, start, stop)
        data = storage.read_range(url, first, end - first) if end > first else b""
        if len(data) != end - first:
            problem = (
                f"rows {start} to {stop} are {end - first:,} bytes, only {len(data):,} could be "
                "read; the file has changed or is truncated"
            )
            raise CorruptError(url, None, problem, start=start, stop=stop, read_bytes=len(data))
        pixels = np.frombuffer(data, np.uint8).reshape(-1, SIDE, SIDE)
        return Rows(pixels, storage.crc32c(data))


def open_bitmaps(url: str, classes: Sequence[str] = ()) -> Bitmaps:
    """Find the classes in a folder; read and check the header of every file.

    Args:
        url: a folder or gs:// prefix.
        classes: only these, in this order, without repeats; empty for all official ones.

    Raises:
        RefusedError: no such folder, no `.npy` file in it, an unknown or missing class, a link that
            leads nowhere, a file that ends in .NPY.
        CorruptError: a header, shape, dtype or length that is not a bitmap file's.
        StorageError: the store did not answer; DeniedError: not for this account.
    """
    try:
        found = storage.sizes(url, ".npy")
    except (FileNotFoundError, NotADirectoryError):
        raise _no_source(url, "no such folder") from None
    if not found:
        raise _no_source(url, "no .npy file in it")
    names = _choose(url, found, classes)
    files = [f"{name}.npy" for name in names]
    with ThreadPoolExecutor(_OPENERS) as pool:
        opened = list(pool.map(lambda n: _open_one(storage.join(url, n), found[n]), files))
    counts = tuple(count for count, _ in opened)
    if url.startswith("gs://quickdraw_dataset/"):
        _check_official_counts(url, names, counts)
    return Bitmaps(url, names, counts, tuple(header for _, header in opened))


def _no_source(url: str, problem: str) -> RefusedError:
    return RefusedError(
        "source",
        url,
        problem,
        "Use a folder with one .npy file per class, "
        "SOURCE=gs://quickdraw_dataset/full/numpy_bitmap (the official ones, 39.5 GB), or "
        "'synthetic:?classes=20&per_class=1000&seed=7' to try without any data",
    )


def _choose(url: str, found: dict[str, int], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the wanted classes, or the official ones that were found, in official order."""
    if wanted:
        for name in wanted:
            if f"{name}.npy" not in found:
                problem = f"there is no {name}.npy in {url}"
                alike = [f for f in found if f.casefold() == f"{name}.npy".casefold()]
                near = nearest(name, [file[: -len(".npy")] for file in found]).strip()
                remedy = f"Rename {alike[0]} to {name}.npy" if alike else near
                raise RefusedError(f"class {name!r}", None, problem, remedy)
        return tuple(wanted)
    known: tuple[str, ...] = official_names()
    names: set[str] = set()
    for file in found:
        name, suffix = file[: -len(".npy")], file[-len(".npy") :]
        if _CONFLICT_COPY.search(name):
            print(f"source: {storage.join(url, file)} is passed over", file=sys.stderr)
        elif name not in known:
            alike = [other for other in known if other.casefold() == name.casefold()]
            near = nearest(alike[0] if alike else name, alike or known)
            raise RefusedError(
                storage.join(url, file),
                None,
                f"{name!r} is none of the 345 official classes.{near}",
                "Rename or remove it, or list all classes with --shard.classes to shard classes of "
                "your own",
            )
        elif suffix != ".npy":
            problem = f"its name ends in {suffix}, that of a bitmap file in .npy"
            raise RefusedError(storage.join(url, file), None, problem, f"Rename it to {name}.npy")
        else:
            names.add(name)
    if not names:
        raise _no_source(url, "no .npy file in it")
    return tuple(name for name in known if name in names)


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
    for _ in range(READINGS):
        data = storage.read_range(url, 0, length)
        if data in seen:
            return data
        if len(data) == length:
            seen.add(data)
    raise CorruptError(url, None, f"no two readings of its first {length:,} bytes agree")


def _check_official_counts(url: str, names: tuple[str, ...], counts: tuple[int, ...]) -> None:
    for name, count in zip(names, counts, strict=True):
        official = official_class(name)
        if official is not None and count != official.drawings:
            problem = f"{count:,} drawings, the official file has {official.drawings:,}"
            raise CorruptError(f"{url}/{name}.npy", None, problem)
