"""Read a folder of stroke files, one `.bin` or `.ndjson` file per class, as strokes or bitmaps."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tqdm import tqdm

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import StorageError
from quickdraw_dist.data.drawings import raster
from quickdraw_dist.data.drawings.classes import ClassFiles, FileSource
from quickdraw_dist.data.drawings.drawing import Content, Rows
from quickdraw_dist.data.drawings.strokes import binary, ndjson
from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.drawings.strokes.records import (
    BadRecord,
    RecordIndex,
    load_index,
    make_index,
)

_READERS = 8
"""Files read in parallel for their records; each takes some 20 MB of memory."""

_FIND_ENDS = {".bin": binary.find_ends, ".ndjson": ndjson.find_ends}


@dataclass(frozen=True)
class StrokeFiles(FileSource):
    """A `Source` over `.bin` or `.ndjson` files."""

    content: Content
    indices: tuple[RecordIndex, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of drawings of every class."""
        return tuple(len(index.lengths) for index in self.indices)

    def header(self, label: int) -> bytes:
        """Return nothing: records begin with the first byte of a file."""
        return b""

    def span(self, label: int, start: int, stop: int) -> tuple[int, int]:
        """Return the first byte of rows `start` to `stop` of a class, and the byte after them."""
        return self.indices[label].span(start, stop)

    def read(self, label: int, start: int, stop: int) -> Rows:
        """Return rows `start` to `stop` of a class: strokes, or (stop - start, 28, 28) uint8 drawn
        as the official bitmaps were.

        A range of an object has no checksum of its own, so a bad record is blamed on the file only
        when two readings agree.

        Raises:
            CorruptError: the file is shorter than it was, or a record is not a drawing.
            RefusedError: a package of the extra `strokes` is missing.
            StorageError: the store failed.
        """
        span = self.span(label, start, stop)
        seen: set[bytes] = set()
        while True:
            data = self.files.read_rows(label, span, (start, stop))
            try:
                strokes = self._parse(label, data, start, stop)
            except BadRecord as error:
                if data in seen or len(seen) == storage.READINGS:
                    raise error.after(start, span[0]).corrupt(self.file_url(label)) from None
                seen.add(data)
                continue
            drawings = strokes if self.content == "strokes" else raster.official(strokes)
            return Rows(drawings, storage.crc32c(data))

    def _parse(self, label: int, data: bytes, start: int, stop: int) -> Strokes:
        edges = self.indices[label].edges(start, stop)
        if self.files.suffix == ".bin":
            return binary.parse(data, edges - edges[0])
        return ndjson.parse(data, edges - edges[0], self.classes[label])


def open_strokes(
    files: ClassFiles, content: Content, records: str = "", keep: bool = True
) -> StrokeFiles:
    """Load the record index of every file, or make it in a pass over the file.

    Args:
        files: the class files.
        content: what to read of every drawing.
        records: folder in which indices are kept for other workers and later starts; empty to
            keep none.
        keep: whether a new index is written there; False for a dataset that is only checked.

    Raises:
        CorruptError: a file is empty, cut off, or has a record that does not end, or Google's
            own bucket has another number of drawings.
        StorageError: the store did not answer; DeniedError: not for this account.
    """
    labels = range(len(files.classes))
    with ThreadPoolExecutor(_READERS) as pool:
        stamps = list(pool.map(storage.stamp, map(files.url, labels)))
        loaded = pool.map(lambda label: _load(files, label, stamps[label], records), labels)
        indices = dict(zip(labels, loaded, strict=True))
    missing = [label for label in labels if indices[label] is None]
    if missing:
        # Workers that start together begin with different files and find each other's indices.
        random.shuffle(missing)
        total = sum(files.sizes[label] for label in missing)
        desc = "reading the source whole for its records"
        with (
            tqdm(total=total, unit="B", unit_scale=True, desc=desc) as bar,
            ThreadPoolExecutor(_READERS) as pool,
        ):
            made = pool.map(
                lambda n: _make(files, n, stamps[n], records, keep, bar.update), missing
            )
            indices |= dict(zip(missing, made, strict=True))
    source = StrokeFiles(files, content, tuple(index for index in indices.values() if index))
    files.check_official_counts(source.counts)
    return source


def _index_url(files: ClassFiles, label: int, records: str) -> str:
    return storage.join(records, f"{files.classes[label]}{files.suffix}.records")


def _load(files: ClassFiles, label: int, stamp: str, records: str) -> RecordIndex | None:
    return load_index(_index_url(files, label, records), stamp) if records else None


def _make(
    files: ClassFiles, label: int, stamp: str, records: str, keep: bool,
    progress: Callable[[int], object],
) -> RecordIndex:  # fmt: skip
    """Return a file's index: the one that another worker has kept by now, or a new one, which is
    then kept."""
    index = _load(files, label, stamp, records)
    if index is not None:
        progress(files.sizes[label])
        return index
    index = make_index(files.url(label), files.sizes[label], _FIND_ENDS[files.suffix], progress)
    if records and keep:
        try:
            storage.publish(_index_url(files, label, records), index.to_bytes(stamp))
        except (OSError, StorageError) as error:  # a finished dataset that can only be read
            print(f"source: an index of records is not kept: {error}", file=sys.stderr)
    return index
