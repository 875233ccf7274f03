"""Read the samples of external tars with the webdataset package, and check every one.

Three kinds can be trained on: a png or an npy array with its class (`.cls`, a number), and this
project's blocks. Any other sample is an error that names it; none is skipped.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import deflate
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from webdataset.handlers import reraise_exception
from webdataset.tariterators import group_by_keys, tar_file_expander

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError, RefusedError
from quickdraw_dist.base.hashing import key64
from quickdraw_dist.data.drawings.drawing import PIXELS, SIDE
from quickdraw_dist.data.shards.blocks import Block

Sample = dict[str, Any]
"""Bytes of the members of one key by their suffix ('png', 'cls'), `__key__` and `__url__`."""

_KINDS = (
    ("png", "cls"),
    ("npy", "cls"),
    ("drawings.npy.gz", "labels.npy.gz"),
    ("drawings.npy", "labels.npy"),
)
"""Suffixes of the members with drawings and with labels."""

_UNREADABLE: tuple[type[Exception], ...] = (
    ValueError, EOFError, OSError, SyntaxError, MemoryError, TokenError, deflate.DeflateError
)  # fmt: skip
"""What numpy, gzip and Pillow raise for bytes that they cannot read."""


def read_samples(urls: Iterable[str]) -> Iterator[Sample]:
    """Yield all samples of these tars in order.

    Raises:
        CorruptError: a tar is damaged or truncated.
        OSError, StorageError: a tar could not be read.
    """
    tars = _Tars(urls)
    # By default both stages skip bad samples; here they must not.
    files = tar_file_expander(tars, handler=reraise_exception)
    try:
        yield from group_by_keys(files, handler=reraise_exception)
    except (tarfile.TarError, ValueError) as error:
        raise CorruptError(tars.url, None, f"not a whole WebDataset tar: {error.args[0]}") from None


class _Tars:
    """Open tars for webdataset, one after the other; `url` is the current one."""

    def __init__(self, urls: Iterable[str]) -> None:
        self._urls = urls
        self.url = ""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for url in self._urls:
            self.url = url
            with contextlib.closing(_open(url)) as file:
                tar = _BlockByBlock(file, url)
                yield {"url": url, "stream": tar}
                if tar.last != bytes(tarfile.BLOCKSIZE):
                    problem = "damaged, truncated or compressed: no empty block ends it"
                    remedy = "Replace it with a whole, uncompressed .tar"
                    raise CorruptError(url, None, problem, remedy)


def _open(url: str) -> IO[bytes]:
    """Open a tar. A remote one is read whole: so its checksum is compared and failures retried."""
    return io.BytesIO(storage.read(url)) if storage.is_remote(url) else Path(url).open("rb")


class _BlockByBlock:
    """A tar that keeps the last block that was read.

    `tarfile` takes any unreadable header but the first one for the end of the tar.
    """

    def __init__(self, file: IO[bytes], url: str) -> None:
        self._file, self._url = file, url
        self.last = b""

    def read(self, _size: int) -> bytes:
        """Return one block of the tar, whatever size is requested."""
        self.last = self._file.read(tarfile.BLOCKSIZE)
        return self.last

    def __str__(self) -> str:
        return self._url  # webdataset's messages contain it


def read_labels(sample: Sample, classes: int) -> NDArray[np.uint16]:
    """Return the labels of a sample's drawings, (n,): one, or those of a block.

    Raises:
        CorruptError: the sample has no labels, or one that is no class; names both.
    """
    _, kind = _kind(sample)
    if kind == "cls":
        try:
            labels = np.array([int(sample[kind])])
        except (ValueError, OverflowError):
            problem = f"{sample[kind][:40]!r} is not the number of a class"
            raise CorruptError(f"{_name(sample)}.cls", None, problem) from None
    else:
        labels = _array(sample, kind)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        problem = f"{labels.dtype} of shape {labels.shape}, not whole numbers in one dimension"
        raise CorruptError(f"{_name(sample)}.{kind}", None, problem)
    beyond = labels[(labels < 0) | (labels >= classes)]
    if beyond.size:
        problem = f"label {beyond[0]}, but there are {classes} classes (0 to {classes - 1})"
        remedy = "Name all classes with --stream.class_names"
        raise CorruptError(_name(sample), None, problem, remedy)
    return labels.astype(np.uint16)


def decode(sample: Sample, classes: int) -> Block:
    """Return a sample's drawings, labels and rows; a hash of its key replaces missing rows.

    Raises:
        CorruptError: the sample cannot be trained on; names it and says why.
    """
    labels = read_labels(sample, classes)
    kind, _ = _kind(sample)
    pixels = _picture(sample) if kind == "png" else _array(sample, kind)
    count = len(labels)
    shapes = [(count, SIDE, SIDE)] if "." in kind else [(SIDE, SIDE), (PIXELS,)]
    if pixels.dtype != np.uint8 or pixels.shape not in shapes:
        wanted = " or ".join(map(str, shapes))
        problem = f"{pixels.dtype} of shape {pixels.shape}, not uint8 of shape {wanted}"
        raise CorruptError(f"{_name(sample)}.{kind}", None, problem)
    return Block(pixels.reshape(count, SIDE, SIDE), labels, _rows(sample, count))


def _kind(sample: Sample) -> tuple[str, str]:
    for kind in _KINDS:
        if sample.keys() >= set(kind):
            return kind
    if {"points.npy", "points.npy.gz"} & sample.keys():
        problem = f"{_name(sample)} holds pen strokes, which that reader does not read"
        remedy = "Read them with --stream.reader shards, from the folder of their manifest.json"
        raise RefusedError("--stream.reader", "webdataset", problem, remedy)
    members = ", ".join(f".{name}" for name in sample if not name.startswith("__"))
    kinds = ".png or .npy with .cls, or .drawings.npy with .labels.npy (both .gz or neither)"
    raise CorruptError(_name(sample), None, f"has {members}, not {kinds}")


def _name(sample: Sample) -> str:
    return f"{sample['__url__']}: {sample['__key__']}"


def _picture(sample: Sample) -> NDArray[np.uint8]:
    """Return the pixels of a greyscale png, (28, 28) uint8."""
    name = f"{_name(sample)}.png"
    try:
        image = Image.open(io.BytesIO(sample["png"]), formats=["PNG"])
        if image.mode == "L" and image.size == (SIDE, SIDE):
            return np.asarray(image)
    except _UNREADABLE as error:
        raise CorruptError(name, None, str(error)) from None
    width, height = image.size
    wanted = f"{SIDE} x {SIDE} of mode L (8-bit grey, white ink on black)"
    problem = f"{width} x {height} pixels of mode {image.mode}, not {wanted}"
    raise CorruptError(name, None, problem)


def _array(sample: Sample, name: str) -> NDArray[Any]:
    data = sample[name]
    try:
        if name.endswith(".gz"):
            data = deflate.gzip_decompress(data)
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except _UNREADABLE as error:
        raise CorruptError(f"{_name(sample)}.{name}", None, f"not an npy array: {error}") from None
    return array


def _rows(sample: Sample, count: int) -> NDArray[np.uint32]:
    """Return the rows, (n,), which with the labels are the drawings' identities."""
    name = next((name for name in ("rows.npy.gz", "rows.npy") if name in sample), None)
    if name is None:
        first = key64(str(sample["__key__"])) % 2**32
        return ((first + np.arange(count)) % 2**32).astype(np.uint32)
    rows = _array(sample, name)
    if rows.shape != (count,) or rows.dtype.kind not in "iu":
        problem = f"{rows.dtype} of shape {rows.shape}, not whole numbers of shape ({count},)"
        raise CorruptError(f"{_name(sample)}.{name}", None, problem)
    return rows.astype(np.uint32)
