"""Open a source of drawings by what a user typed.

A source is a folder or bucket of `.npy` bitmaps, or `synthetic:?classes=20&per_class=1000&seed=7`.
"""

from __future__ import annotations

from collections.abc import Sequence

from quickdraw_dist.base import storage
from quickdraw_dist.data.drawings.bitmaps import open_bitmaps
from quickdraw_dist.data.drawings.drawing import Source
from quickdraw_dist.data.drawings.synthetic.source import open_synthetic


def open_source(url: str, classes: Sequence[str] = ()) -> Source:
    """The source behind a folder, a `gs://` prefix or a `synthetic:` recipe.

    Args:
        url: what the user typed.
        classes: only these, in this order; empty for all that are there.

    Raises:
        RefusedError: nothing is there, or a class, header or file is not what it should be.
    """
    if url.startswith("synthetic:"):
        return open_synthetic(url, classes)
    return open_bitmaps(url, classes)


def source_address(text: str) -> str:
    """Return a source as typed in its one spelling; errors are those of `storage.address`."""
    return text if text.startswith("synthetic:") else storage.address(text)
