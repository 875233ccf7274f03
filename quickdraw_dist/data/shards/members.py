"""Write and read the members of a shard's tar, and the arrays in them.

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
from functools import lru_cache
from typing import Any, NamedTuple

import deflate
import numpy as np
from isal import igzip
from numpy.typing import NDArray

END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)
"""Two empty headers; ends every shard."""

UNREADABLE = (deflate.DeflateError, KeyError, ValueError, IndexError)
"""What bytes that are no block raise, from tar headers to the contents of an array."""

_HEADER = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)
_HEADER = _HEADER[:148] + b" " * 8 + _HEADER[156:]
"""Header of a file without name and contents; the checksum is computed over blanks in its place."""

_GZIP_LEVEL = 2
"""isal's levels are 0 to 3; 2 was the smallest on the official drawings, and as fast as 1."""


def write_member(name: str, data: bytes) -> bytes:
    """Return a file of a tar as tarfile writes it; tarfile takes 20 us per header."""
    header, text = bytearray(_HEADER), name.encode("ascii")
    header[: len(text)] = text
    header[124:135] = b"%011o" % len(data)
    header[148:155] = b"%06o\0" % sum(header)
    return b"".join((header, data, bytes(-len(data) % tarfile.BLOCKSIZE)))


def read_members(view: memoryview) -> Iterator[tuple[str, memoryview]]:
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


def write_array(name: str, array: NDArray[Any], compression: str) -> bytes:
    """Return the member NAME.npy, or NAME.npy.gz, that holds a contiguous array."""
    data = b"".join((_npy(array.dtype, array.shape).header, array.data))
    if compression != "gzip":
        return write_member(f"{name}.npy", data)
    return write_member(f"{name}.npy.gz", igzip.compress(data, _GZIP_LEVEL, mtime=0))


def read_array(
    payload: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], *, gzipped: bool
) -> NDArray[Any]:
    """Return the array of a member, of this type and shape: so its header is known, and comparing
    it is check and parser in one.

    Raises:
        ValueError, deflate.DeflateError: it is not such an array.
    """
    header, size = _npy(dtype, shape)
    data = payload
    if gzipped:
        # The last four bytes are the size that the decoder allocates.
        if int.from_bytes(payload[-4:], "little") != size:
            raise ValueError(f"does not decompress to the {size:,} bytes of shape {shape}")
        data = memoryview(deflate.gzip_decompress(payload))
    if len(data) != size or data[: len(header)] != header:
        raise ValueError(f"is not an array of shape {shape} and type {dtype}")
    array: NDArray[Any] = np.ndarray(shape, dtype, data, len(header))
    return array


class _Npy(NamedTuple):
    """The file of an array whose type and shape are known."""

    header: bytes  # of .npy format version 1
    size: int  # bytes, header included


@lru_cache(maxsize=64)
def _npy(dtype: np.dtype[Any], shape: tuple[int, ...]) -> _Npy:
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return _Npy(header.getvalue(), len(header.getvalue()) + math.prod(shape) * dtype.itemsize)
