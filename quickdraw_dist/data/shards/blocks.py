"""Encode and decode blocks: drawings, labels and rows as members of a tar.

Every member is a ustar header with mtime 0 and its data padded to 512 bytes. So a shard is its
blocks in order plus the end of the tar, a block can be read by range, and the same drawings are
the same bytes. (Members are written one by one: a tar writer with its own stream would hide the
offsets that the manifest needs.)
"""

from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import deflate
import numpy as np
from isal import igzip
from numpy.typing import NDArray
from PIL import Image

from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.base.storage import crc32c
from quickdraw_dist.data.drawings.drawing import PIXELS, SIDE

END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)
"""Two empty headers; ends every shard."""

_HEADER = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)
_HEADER = _HEADER[:148] + b" " * 8 + _HEADER[156:]
"""Header of a file without name and contents; the checksum is computed over blanks in its place."""

_GZIP_LEVEL = 2
"""isal's levels are 0 to 3; 2 was the smallest on the official drawings, and as fast as 1."""

_UNREADABLE = (deflate.DeflateError, KeyError, ValueError, IndexError)
"""What bytes that are no block raise, from tar headers to the contents of an array."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "drawings": np.dtype(np.uint8),
    "labels": np.dtype("<u2"),
    "rows": np.dtype("<u4"),
}

BYTES_PER_DRAWING = PIXELS + sum(_DTYPES[name].itemsize for name in ("labels", "rows"))
"""Memory of a decoded block per drawing: pixels, label and row."""


@dataclass(frozen=True)
class Block:
    """Decoded drawings with their identities."""

    drawings: NDArray[np.uint8]  # (n, 28, 28)
    labels: NDArray[np.uint16]  # (n,)
    rows: NDArray[np.uint32]  # (n,)

    def slice(self, start: int, stop: int) -> Block:
        """Return drawings `start` to `stop` of the block, without a copy."""
        piece = slice(start, stop)
        return Block(self.drawings[piece], self.labels[piece], self.rows[piece])

    def pixel_sums(self) -> NDArray[np.int64]:
        """Return the sum of the pixels and the sum of their squares, (2,)."""
        # Even the squares of a quarter of a drawing sum to less than 2^24: exact in float32,
        # whatever order BLAS adds in. In slices that stay in the processor's cache.
        quarters, sums = self.drawings.reshape(-1, PIXELS // 4), np.zeros(2)
        ones = np.ones(PIXELS // 4, np.float32)
        for at in range(0, len(quarters), 1024):
            values = quarters[at : at + 1024].astype(np.float32)
            for n, of_quarters in enumerate((np.vecdot(values, ones), np.vecdot(values, values))):
                sums[n] += of_quarters.sum(dtype=np.float64)
        return sums.astype(np.int64)

    @property
    def crc(self) -> int:
        """CRC-32C of the contents, which does not depend on the compression."""
        crc = 0
        for _, array in self.stored():
            crc = crc32c(array.data, crc)
        return crc

    def stored(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield the name and values of each array, in the type and order of its file."""
        for name, dtype in _DTYPES.items():
            yield name, np.ascontiguousarray(getattr(self, name), dtype)


def encode(block: Block, key: str, compression: str) -> bytes:
    """Return a block as one WebDataset sample of three members, KEY.drawings.npy[.gz] and so on."""
    members = []
    for name, array in block.stored():
        data = b"".join((_npy(name, len(array)).header, array.data))
        if compression == "gzip":
            data = igzip.compress(data, _GZIP_LEVEL, mtime=0)
        members.append(_member(f"{key}.{name}.npy{'.gz' if compression == 'gzip' else ''}", data))
    return b"".join(members)


def encode_per_drawing(block: Block) -> bytes:
    """Return the drawings as one sample each, `LLLLL-RRRRRRRRRR.png` and `.cls`, for readers of
    other projects; this one reads them back as external data."""
    members = []
    for pixels, label, row in zip(block.drawings, block.labels, block.rows, strict=True):
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "png")
        members.append(_member(f"{label:05d}-{row:010d}.png", png.getvalue()))
        members.append(_member(f"{label:05d}-{row:010d}.cls", str(label).encode()))
    return b"".join(members)


def decode(data: bytes | memoryview, count: int) -> Block:
    """Return the block of `count` drawings in these bytes, compressed or not.

    Args:
        data: the members, from the first header to the end of the last padding.
        count: drawings of the block, as the manifest says.

    Raises:
        CorruptError: the bytes are no block of `count` drawings.
    """
    try:
        arrays: dict[str, NDArray[Any]] = {}
        for name, payload in _members(memoryview(data)):
            kind = name.split(".", 2)[1]
            arrays[kind] = _read_npy(kind, count, payload, gzipped=name.endswith(".gz"))
        drawings, labels, rows = (arrays[kind] for kind in _DTYPES)
    except _UNREADABLE as error:
        raise CorruptError(
            "contents", None, f"not a block of {count:,} drawings: {error}"
        ) from None
    return Block(drawings, labels.astype(np.uint16, copy=False), rows.astype(np.uint32, copy=False))


def _member(name: str, data: bytes) -> bytes:
    """Return a file of a tar as tarfile writes it; tarfile takes 20 us per header."""
    header, text = bytearray(_HEADER), name.encode("ascii")
    header[: len(text)] = text
    header[124:135] = b"%011o" % len(data)
    header[148:155] = b"%06o\0" % sum(header)
    return b"".join((header, data, bytes(-len(data) % tarfile.BLOCKSIZE)))


def _members(view: memoryview) -> Iterator[tuple[str, memoryview]]:
    """Yield the name and payload of every member, without copies. tarfile's parser takes 20 us and
    holds the interpreter lock: a quarter of a core at 4,000 blocks per second. The rest of a header
    does not matter here, and the contents have their own checksum."""
    at = 0
    while at < len(view):
        header = bytes(view[at : at + 136])
        name, size = header[:100].partition(b"\0")[0], int(header[124:].rstrip(b"\0 "), 8)
        at += tarfile.BLOCKSIZE
        yield name.decode("ascii"), view[at : at + size]
        at += size + -size % tarfile.BLOCKSIZE  # padded


class _Npy(NamedTuple):
    """The file of an array whose type and shape are known."""

    header: bytes  # of .npy format version 1
    shape: tuple[int, ...]
    size: int  # bytes, header included


@lru_cache(maxsize=64)
def _npy(kind: str, count: int) -> _Npy:
    shape = (count, SIDE, SIDE) if kind == "drawings" else (count,)
    kept, header = _DTYPES[kind], io.BytesIO()
    descr = np.lib.format.dtype_to_descr(kept)
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    size = len(header.getvalue()) + math.prod(shape) * kept.itemsize
    return _Npy(header.getvalue(), shape, size)


def _read_npy(kind: str, count: int, payload: memoryview, *, gzipped: bool) -> NDArray[Any]:
    """Return an array whose header is known: comparing it is check and parser in one."""
    header, shape, size = _npy(kind, count)
    data = payload
    if gzipped:
        # The last four bytes are the size that the decoder allocates.
        if int.from_bytes(payload[-4:], "little") != size:
            raise ValueError(f"{kind} does not decompress to the {size:,} bytes of {shape}")
        data = memoryview(deflate.gzip_decompress(payload))
    if len(data) != size or data[: len(header)] != header:
        raise ValueError(f"{kind} is not an array of shape {shape} and type {_DTYPES[kind]}")
    array: NDArray[Any] = np.ndarray(shape, _DTYPES[kind], data, len(header))
    return array
