"""Samples of external tars, grouped by the webdataset package and checked one by one.

Three kinds can be trained on: a png or an npy array with its class (`.cls`, a number), and our own
blocks. What is anything else is an error that names the sample; nothing is skipped.
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
from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.base.hashing import key64
from quickdraw_dist.data.drawings.drawing import PIXELS, SIDE
from quickdraw_dist.data.shards.blocks import Block

Sample = dict[str, Any]
"""Bytes of the members of one key, by what follows it ('png', 'cls'), `__key__` and `__url__`."""

_KINDS = (
    ("png", "cls"),
    ("npy", "cls"),
    ("drawings.npy.gz", "labels.npy.gz"),
    ("drawings.npy", "labels.npy"),
)
"""Members with the drawings and with their labels."""

_UNREADABLE: tuple[type[Exception], ...] = (
    ValueError, EOFError, OSError, SyntaxError, MemoryError, TokenError, deflate.DeflateError
)  # fmt: skip
"""What numpy, gzip and Pillow raise on bytes that are not theirs."""


def read_samples(urls: Iterable[str]) -> Iterator[Sample]:
    """All samples of these tars, in order.

    Raises:
        CorruptError: a tar is damaged or cut short; names it.
        OSError, StorageError: it could not be read.
    """
    tars = _Tars(urls)
    # Both stages can skip what goes wrong; here they must not.
    files = tar_file_expander(tars, handler=reraise_exception)
    try:
        yield from group_by_keys(files, handler=reraise_exception)
    except (tarfile.TarError, ValueError) as error:
        raise CorruptError(f"{tars.url}: not a whole WebDataset tar: {error.args[0]}") from None


class _Tars:
    """Opens one tar after the other for webdataset."""

    def __init__(self, urls: Iterable[str]) -> None:
        self._urls = urls
        self.url = ""  # of the open one

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for url in self._urls:
            self.url = url
            with contextlib.closing(_open(url)) as file:
                tar = _BlockByBlock(file, url)
                yield {"url": url, "stream": tar}
                if tar.last != bytes(tarfile.BLOCKSIZE):
                    raise CorruptError(
                        f"{url}: damaged, cut short or compressed: what was read last is not "
                        "the empty block that ends a tar; a whole, plain .tar is right"
                    )


def _open(url: str) -> IO[bytes]:
    """A remote tar is read at once: then its checksum is compared, and what fails is repeated."""
    return io.BytesIO(storage.read(url)) if storage.is_remote(url) else Path(url).open("rb")


class _BlockByBlock:
    """A tar that knows which block its reader saw last.

    `tarfile` takes a header that it cannot read for the end of the tar, except for the first one.
    """

    def __init__(self, file: IO[bytes], url: str) -> None:
        self._file, self._url = file, url
        self.last = b""

    def read(self, _size: int) -> bytes:
        """One block of the tar, however many are asked for."""
        self.last = self._file.read(tarfile.BLOCKSIZE)
        return self.last

    def __str__(self) -> str:
        return self._url  # webdataset puts it into its messages


def read_labels(sample: Sample, classes: int) -> NDArray[np.uint16]:
    """Labels of a sample's drawings, (n,): one, or those of a block.

    Raises:
        CorruptError: there are none, or one is no class's; names the sample and the label.
    """
    _, kind = _kind(sample)
    if kind == "cls":
        try:
            labels = np.array([int(sample[kind])])
        except (ValueError, OverflowError):
            raise CorruptError(
                f"{_name(sample)}.cls: {sample[kind][:40]!r}; the number of a class is right"
            ) from None
    else:
        labels = _array(sample, kind)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise CorruptError(
            f"{_name(sample)}.{kind}: {labels.dtype} of shape {labels.shape}; whole numbers in one "
            "dimension are right"
        )
    beyond = labels[(labels < 0) | (labels >= classes)]
    if beyond.size:
        raise CorruptError(
            f"{_name(sample)}: label {beyond[0]}, but there are {classes} classes (0 to "
            f"{classes - 1}); the names of all of them with --stream.class_names are right"
        )
    return labels.astype(np.uint16)


def decode(sample: Sample, classes: int) -> Block:
    """A sample's drawings, labels and rows; where it has no rows, its hashed key stands for them.

    Raises:
        CorruptError: it is not of a kind that can be trained on; names it and what is wrong.
    """
    labels = read_labels(sample, classes)
    kind, _ = _kind(sample)
    pixels = _picture(sample) if kind == "png" else _array(sample, kind)
    count = len(labels)
    right = [(count, SIDE, SIDE)] if "." in kind else [(SIDE, SIDE), (PIXELS,)]
    if pixels.dtype != np.uint8 or pixels.shape not in right:
        raise CorruptError(
            f"{_name(sample)}.{kind}: {pixels.dtype} of shape {pixels.shape}; uint8 of shape "
            f"{' or '.join(map(str, right))} is right"
        )
    return Block(pixels.reshape(count, SIDE, SIDE), labels, _rows(sample, count))


def _kind(sample: Sample) -> tuple[str, str]:
    for kind in _KINDS:
        if sample.keys() >= set(kind):
            return kind
    members = ", ".join(f".{name}" for name in sample if not name.startswith("__"))
    raise CorruptError(
        f"{_name(sample)}: has {members}; .png or .npy with .cls, or .drawings.npy with "
        ".labels.npy (both with .gz or both without), is right"
    )


def _name(sample: Sample) -> str:
    return f"{sample['__url__']}: {sample['__key__']}"


def _picture(sample: Sample) -> NDArray[np.uint8]:
    """(28, 28) uint8 of a png without colours."""
    name = f"{_name(sample)}.png"
    try:
        image = Image.open(io.BytesIO(sample["png"]), formats=["PNG"])
        if image.mode == "L" and image.size == (SIDE, SIDE):
            return np.asarray(image)
    except _UNREADABLE as error:
        raise CorruptError(f"{name}: {error}") from None
    width, height = image.size
    raise CorruptError(
        f"{name}: {width} x {height} pixels of mode {image.mode}; {SIDE} x {SIDE} of mode L (8 "
        "bits of grey, white ink on black) are right"
    )


def _array(sample: Sample, name: str) -> NDArray[Any]:
    data = sample[name]
    try:
        if name.endswith(".gz"):
            data = deflate.gzip_decompress(data)
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except _UNREADABLE as error:
        raise CorruptError(f"{_name(sample)}.{name}: not an npy array: {error}") from None
    return array


def _rows(sample: Sample, count: int) -> NDArray[np.uint32]:
    """With the labels, the drawings' identities."""
    name = next((name for name in ("rows.npy.gz", "rows.npy") if name in sample), None)
    if name is None:
        first = key64(str(sample["__key__"])) % 2**32
        return ((first + np.arange(count)) % 2**32).astype(np.uint32)
    rows = _array(sample, name)
    if rows.shape != (count,) or rows.dtype.kind not in "iu":
        raise CorruptError(
            f"{_name(sample)}.{name}: {rows.dtype} of shape {rows.shape}; whole numbers of shape "
            f"({count},) are right"
        )
    return rows.astype(np.uint32)
