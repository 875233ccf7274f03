"""Official bitmaps: one `.npy` file a class, `(N, 784)` uint8, in a folder or under gs://."""

from __future__ import annotations

import io
import tokenize
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError, RefusedError, nearest
from quickdraw_dist.data.drawings.classes import official_class, official_names
from quickdraw_dist.data.drawings.drawing import PIXELS, SIDE, Source

_FIRST_READ_BYTES = 512
"""Enough for every header seen: 80 bytes in the official files, 128 from numpy.save."""

_BAD_HEADER = (ValueError, TypeError, SyntaxError, tokenize.TokenError)
"""What numpy's parser of headers raises for bytes that are none."""

READINGS = 2 * storage.ATTEMPTS
"""Most readings of a range in doubt: twice the tries of a request, for two may have to agree."""

_OPENERS = 16
"""Headers read at once: over a network each one is a round trip."""


@dataclass(frozen=True)
class Bitmaps:
    """A `Source` over `.npy` files."""

    url: str
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    headers: tuple[bytes, ...]

    @property
    def identity(self) -> str:
        """Files have checksums."""
        return ""

    def header(self, label: int) -> bytes:
        """The file's bytes before its first row."""
        return self.headers[label]

    def checksum(self, label: int) -> int | None:
        """The store's own; of a local file, that of its bytes as they are now."""
        return storage.object_crc32c(file_url(self, label))

    def read(self, label: int, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows of one class by range, (stop - start, 28, 28) uint8."""
        url, length = file_url(self, label), (stop - start) * PIXELS
        data = storage.read_range(url, len(self.headers[label]) + start * PIXELS, length)
        if len(data) != length:
            raise CorruptError(
                f"{url}: rows {start} to {stop} are {length:,} bytes, "
                f"{len(data):,} came; the file has changed or is truncated"
            )
        return np.frombuffer(data, np.uint8).reshape(-1, SIDE, SIDE)


def file_url(source: Source, label: int) -> str:
    """Where the file of a class is."""
    return storage.join(source.url, f"{source.classes[label]}.npy")


def open_bitmaps(url: str, classes: Sequence[str] = ()) -> Bitmaps:
    """Find the classes below an address and read and check every header.

    Raises:
        RefusedError: no such place, no `.npy` there, an unknown or missing class.
        CorruptError: a header, shape, dtype or length that is not a bitmap file's.
        StorageError: the store did not answer; DeniedError: not to this account.
    """
    try:
        found = {n.removesuffix(".npy"): s for n, s in storage.sizes(url, ".npy").items()}
    except (FileNotFoundError, NotADirectoryError):
        raise RefusedError(_nothing(url, "no such folder")) from None
    if not found:
        raise RefusedError(_nothing(url, "no .npy file in it"))
    names = _choose(url, found, classes)
    with ThreadPoolExecutor(_OPENERS) as pool:
        opened = list(pool.map(lambda n: _open_one(storage.join(url, f"{n}.npy"), found[n]), names))
    counts = tuple(count for count, _ in opened)
    if url.startswith("gs://quickdraw_dataset/"):
        _compare_with_official(url, names, counts)
    return Bitmaps(url, names, counts, tuple(header for _, header in opened))


def _nothing(url: str, what: str) -> str:
    return (
        f"source {url}: {what}. It should hold one .npy file a class: "
        "SOURCE=gs://quickdraw_dataset/full/numpy_bitmap (the official ones, 39.5 GB), a folder "
        "of them, or 'synthetic:?classes=20&per_class=1000&seed=7' to try without any data"
    )


def _choose(url: str, found: dict[str, int], wanted: Sequence[str]) -> tuple[str, ...]:
    """The classes to use: the wanted ones, or the official ones that are there, in their order."""
    if wanted:
        twice = sorted({name for name in wanted if list(wanted).count(name) > 1})
        if twice:
            raise RefusedError(f"--shard.classes names {twice[0]!r} twice; once is right")
        for name in wanted:
            if name not in found:
                raise RefusedError(
                    f"class {name!r}: there is no {name}.npy in {url}.{nearest(name, found)}"
                )
        return tuple(wanted)
    known = official_names()
    for name in found:
        if name not in known:
            raise RefusedError(
                f"{storage.join(url, name)}.npy: {name!r} is not one of the 345 official classes."
                f"{nearest(name, known)} To shard classes of your own, list all of them with "
                "--shard.classes"
            )
    return tuple(name for name in known if name in found)


def _open_one(url: str, size: int) -> tuple[int, bytes]:
    """Rows and header bytes of one file."""
    try:
        start = _first_bytes(url, min(size, _FIRST_READ_BYTES))
    except (IsADirectoryError, PermissionError) as error:
        raise RefusedError(f"{url}: {error.strerror}; a readable .npy file is right") from None
    file = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    except _BAD_HEADER as error:
        raise CorruptError(f"{url}: not a .npy file: {error}") from None
    if shape[1:] not in ((PIXELS,), (SIDE, SIDE)) or dtype != np.uint8 or fortran:
        order = "Fortran" if fortran else "C"
        raise CorruptError(
            f"{url}: holds shape {shape}, {dtype}, {order} order; a bitmap file holds "
            "(N, 784) or (N, 28, 28), uint8, C order"
        )
    expected = file.tell() + shape[0] * PIXELS
    if size != expected:
        raise CorruptError(
            f"{url}: {size:,} bytes, but its header promises {shape[0]:,} drawings = "
            f"{expected:,} bytes; "
            + ("it is truncated: fetch it again" if size < expected else "it has a foreign tail")
        )
    return int(shape[0]), start[: file.tell()]


def _first_bytes(url: str, length: int) -> bytes:
    """What a file begins with. A range of an object comes without a checksum of its own, so it is
    read until two readings agree."""
    seen: set[bytes] = set()
    for _ in range(READINGS):
        data = storage.read_range(url, 0, length)
        if data in seen:
            return data
        if len(data) == length:
            seen.add(data)
    raise CorruptError(f"{url}: no two readings of its first {length:,} bytes agree")


def _compare_with_official(url: str, names: tuple[str, ...], counts: tuple[int, ...]) -> None:
    for name, count in zip(names, counts, strict=True):
        official = official_class(name)
        if official is not None and count != official.drawings:
            raise CorruptError(
                f"{url}/{name}.npy: {count:,} drawings, the official file has {official.drawings:,}"
            )
