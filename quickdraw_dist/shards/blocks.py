"""The bytes of a block: some drawings, their labels and their rows, as members of a tar.

Every member is a ustar header with mtime 0 and its data padded to 512 bytes, so a shard is the
blocks one after the other plus the end of the tar, a block can be read by range, and the same
drawings are the same bytes. (Plain `tarfile` headers: a writer with a stream of its own would
hide the offsets that the manifest needs.)
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from isal import igzip, igzip_lib, isal_zlib
from numpy.typing import NDArray
from PIL import Image

from quickdraw_dist.drawings import SIDE
from quickdraw_dist.errors import CorruptError
from quickdraw_dist.storage import crc32c

END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)
"""Two empty headers; ends every shard."""

_GZIP_LEVEL = 2
"""isal's levels are 0 to 3; 2 was the smallest on the official drawings, and as fast as 1."""

_GZIP = 31
"""zlib's way of saying: a gzip header and trailer, the largest window."""

_GzipError = cast(type[Exception], igzip_lib.IsalError)  # typed as an instance in its stubs

_UNREADABLE = (
    tarfile.TarError, _GzipError, KeyError, ValueError, IndexError, OSError, OverflowError
)  # fmt: skip
"""What reading bytes that are no block can raise, from tar headers to Pillow."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "drawings": np.dtype(np.uint8),
    "labels": np.dtype("<u2"),
    "rows": np.dtype("<u4"),
}


@dataclass(frozen=True)
class Block:
    """Decoded drawings with their identities."""

    drawings: NDArray[np.uint8]  # (n, 28, 28)
    labels: NDArray[np.uint16]  # (n,)
    rows: NDArray[np.uint32]  # (n,)

    def pixel_sums(self) -> NDArray[np.int64]:
        """Sum of the pixels and of their squares, (2,)."""
        # float64 holds these integer sums exactly, whatever order BLAS adds them in.
        values = self.drawings.ravel().astype(np.float64)
        return np.array([values.sum(), values @ values]).astype(np.int64)

    @property
    def crc(self) -> int:
        """CRC-32C over the contents: the same however they are compressed."""
        arrays = (self.drawings, self.labels.astype("<u2"), self.rows.astype("<u4"))
        crc = 0
        for array in arrays:
            crc = crc32c(array.tobytes(), crc)
        return crc


def encode(block: Block, key: str, compression: str) -> bytes:
    """A block as one WebDataset sample of three members, `KEY.drawings.npy[.gz]` and so on."""
    members = []
    for name, array in (
        ("drawings", block.drawings),
        ("labels", block.labels),
        ("rows", block.rows),
    ):
        data = _npy_header(name, array.shape) + array.astype(_DTYPES[name], copy=False).tobytes()
        if compression == "gzip":
            data = igzip.compress(data, _GZIP_LEVEL, mtime=0)
        members.append(_member(f"{key}.{name}.npy{'.gz' if compression == 'gzip' else ''}", data))
    return b"".join(members)


def encode_per_drawing(block: Block) -> bytes:
    """The same drawings as one sample each, `LLLLL-RRRRRRRRRR.png` and `.cls`, for any reader."""
    members = []
    for pixels, label, row in zip(block.drawings, block.labels, block.rows, strict=True):
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "png")
        members.append(_member(f"{label:05d}-{row:010d}.png", png.getvalue()))
        members.append(_member(f"{label:05d}-{row:010d}.cls", str(label).encode()))
    return b"".join(members)


def decode(data: bytes, count: int, into: NDArray[np.uint8] | None = None) -> Block:
    """The block of `count` drawings in these bytes, of either layout, compressed or not.

    Args:
        data: the members, from the first header to the end of the last padding.
        count: drawings that the manifest promises.
        into: (count, 28, 28) uint8 to decode the drawings into; None for a new array.

    Raises:
        CorruptError: the bytes are not such a block.
    """
    try:
        members = list(_members(data))
        if members and members[0][0].endswith(".png"):
            return _decode_per_drawing(members, count, into)
        arrays: dict[str, NDArray[Any]] = {}
        for name, payload in members:
            kind = name.split(".")[1]
            shape = (count, SIDE, SIDE) if kind == "drawings" else (count,)
            arrays[kind] = _read_npy(kind, shape, payload, gzipped=name.endswith(".gz"))
        drawings, labels, rows = (arrays[kind] for kind in _DTYPES)
    except _UNREADABLE as error:
        raise CorruptError(f"not a block of {count:,} drawings: {error}") from None
    if into is not None:
        np.copyto(into, drawings)
        drawings = into
    return Block(drawings, labels.astype(np.uint16, copy=False), rows.astype(np.uint32, copy=False))


def _decode_per_drawing(
    members: list[tuple[str, memoryview]], count: int, into: NDArray[np.uint8] | None
) -> Block:
    drawings = np.empty((count, SIDE, SIDE), np.uint8) if into is None else into
    labels, rows = np.empty(count, np.uint16), np.empty(count, np.uint32)
    if len(members) != 2 * count:
        raise ValueError(f"{len(members)} files, a png and a cls each would be {2 * count}")
    for at in range(count):
        (png, picture), (cls, label) = members[2 * at : 2 * at + 2]
        key = png.removesuffix(".png")
        labels[at], rows[at] = (int(part) for part in key.split("-"))
        if cls != f"{key}.cls" or bytes(label) != str(labels[at]).encode():
            raise ValueError(f"{cls} says {bytes(label)!r} of {png}")
        pixels = _read_png(png, picture)
        if pixels.shape != (SIDE, SIDE):
            raise ValueError(f"{png} is of shape {pixels.shape}")
        drawings[at] = pixels
    return Block(drawings, labels, rows)


def _read_png(name: str, data: memoryview) -> NDArray[np.uint8]:
    try:
        return np.asarray(Image.open(io.BytesIO(data), formats=["PNG"]))
    except SyntaxError as error:  # Pillow's word for a damaged chunk
        raise ValueError(f"{name}: {error}") from None


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _members(data: bytes) -> Iterator[tuple[str, memoryview]]:
    """Name and payload of every member, without copies."""
    at, view = 0, memoryview(data)
    while at < len(data):
        header = data[at : at + tarfile.BLOCKSIZE]
        info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        at += tarfile.BLOCKSIZE
        yield info.name, view[at : at + info.size]
        at += info.size + -info.size % tarfile.BLOCKSIZE


@lru_cache(maxsize=64)
def _npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
    """The one header that format version 1 has for this array."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header,
        {
            "descr": np.lib.format.dtype_to_descr(_DTYPES[kind]),
            "fortran_order": False,
            "shape": shape,
        },
    )
    return header.getvalue()


def _read_npy(
    kind: str, shape: tuple[int, ...], payload: memoryview, *, gzipped: bool
) -> NDArray[Any]:
    """An array whose header is known beforehand; comparing it is both check and parser."""
    header, dtype = _npy_header(kind, shape), _DTYPES[kind]
    expected = len(header) + int(np.prod(shape)) * dtype.itemsize
    data = payload
    if gzipped:
        data = memoryview(isal_zlib.decompress(payload, wbits=_GZIP, bufsize=expected))
    if len(data) != expected or data[: len(header)] != header:
        raise ValueError(f"{kind} is not an array of shape {shape} and type {dtype}")
    return np.frombuffer(data, dtype, offset=len(header)).reshape(shape)
