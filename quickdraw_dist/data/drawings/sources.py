"""Open a source of drawings by what a user typed.

A source is a folder or bucket of `.npy` bitmaps or of `.bin` or `.ndjson` strokes, or
`synthetic:?classes=20&per_class=1000&seed=7`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.data.drawings.bitmaps import open_bitmaps
from quickdraw_dist.data.drawings.classes import ClassFiles, find_class_files
from quickdraw_dist.data.drawings.drawing import Content, Source
from quickdraw_dist.data.drawings.stroke_files import open_strokes
from quickdraw_dist.data.drawings.synthetic.source import open_synthetic


def open_source(
    url: str, classes: Sequence[str] = (), content: Content = "bitmaps", records: str = "",
    keep: bool = True,
) -> Source:  # fmt: skip
    """Open the source at a folder, a `gs://` prefix or a `synthetic:` address.

    Args:
        url: what the user typed.
        classes: only these, in this order; empty for all of the source.
        content: what to read of every drawing. Bitmaps of stroke files are drawn as the official
            ones were.
        records: folder in which the record indices of stroke files are kept, made in one pass over
            the files if they are not there; empty to keep none.
        keep: whether new indices are written there.

    Raises:
        RefusedError: there is no source, or an unknown class in it or in `classes`, or one twice,
            or it holds no strokes.
        CorruptError: a file is not a bitmap file, or not one of strokes.
        StorageError: the store failed.
    """
    return _open(_find_files(url, classes, content), url, classes, content, records, keep)


class Counts(NamedTuple):
    """What a plan needs of a source; the fields are those of `Source`."""

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    identity: str


def count_drawings(
    url: str, classes: Sequence[str] = (), content: Content = "bitmaps", records: str = ""
) -> Counts:
    """Return what a plan needs of a source; writes nothing.

    Google's own files have the official counts, none is opened. Other files of strokes are read
    whole, unless their indices are in `records`. Arguments and errors are those of `open_source`.
    """
    files = _find_files(url, classes, content)
    if files is not None:
        official = [count for count in files.official_counts() if count is not None]
        if len(official) == len(files.classes):
            return Counts(files.classes, tuple(official), identity="")
    source = _open(files, url, classes, content, records, keep=False)
    return Counts(source.classes, source.counts, source.identity)


def _open(
    files: ClassFiles | None, url: str, classes: Sequence[str], content: Content, records: str,
    keep: bool,
) -> Source:  # fmt: skip
    """Open a source whose class files have been found; None: it is synthetic."""
    if files is None:
        return open_synthetic(url, classes, content)
    if files.suffix != ".npy":
        return open_strokes(files, content, records, keep)
    return open_bitmaps(files)


def _find_files(url: str, classes: Sequence[str], content: Content) -> ClassFiles | None:
    """Return the class files of a source, None if it is synthetic; errors are `open_source`'s."""
    for name in classes:
        if classes.count(name) > 1:
            raise RefusedError("--shard.classes", name, "named twice", "Name each class once")
    if url.startswith("synthetic:"):
        return None
    files = find_class_files(url, classes)
    if files.suffix == ".npy" and content == "strokes":
        raise RefusedError(
            "source",
            url,
            "bitmaps hold no strokes",
            "Use the official strokes, gs://quickdraw_dataset/full/binary (5.9 GB) or "
            "gs://quickdraw_dataset/full/simplified (24 GB), or --shard.content bitmaps",
        )
    return files


def source_address(text: str) -> str:
    """Return a source as typed in its one spelling; errors are those of `storage.address`."""
    return text if text.startswith("synthetic:") else storage.address(text)
