"""Open a source of drawings by what a user typed.

A source is a folder or bucket of `.npy` bitmaps, or `synthetic:?classes=20&per_class=1000&seed=7`.
"""

from __future__ import annotations

from collections.abc import Sequence

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.data.drawings.bitmaps import open_bitmaps
from quickdraw_dist.data.drawings.drawing import Content, Source
from quickdraw_dist.data.drawings.synthetic.source import open_synthetic


def open_source(url: str, classes: Sequence[str] = (), content: Content = "bitmaps") -> Source:
    """Open the source at a folder, a `gs://` prefix or a `synthetic:` address.

    Args:
        url: what the user typed.
        classes: only these, in this order; empty for all of the source.
        content: what to read of every drawing.

    Raises:
        RefusedError: there is no source, or an unknown class in it or in `classes`, or one twice,
            or it holds no strokes.
        CorruptError: a file is not a bitmap file.
        StorageError: the store failed.
    """
    for name in classes:
        if classes.count(name) > 1:
            raise RefusedError("--shard.classes", name, "named twice", "Name each class once")
    if url.startswith("synthetic:"):
        return open_synthetic(url, classes, content)
    if content == "strokes":
        raise RefusedError("source", url, "holds no strokes", "Use --shard.content bitmaps")
    return open_bitmaps(url, classes)


def source_address(text: str) -> str:
    """Return a source as typed in its one spelling; errors are those of `storage.address`."""
    return text if text.startswith("synthetic:") else storage.address(text)
