"""Write the drawings of a source as stroke files, in the two official forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quickdraw_dist.data.drawings.drawing import Source
from quickdraw_dist.data.drawings.strokes.arrays import RECOGNIZED, UNKNOWN, Strokes
from tests.support.data.stroke_files import as_lists, to_bin, to_ndjson


def write_bin(source: Source, folder: Path, times: int) -> None:
    """Write a `.bin` file per class into a new folder, each with all drawings `times` times.

    The format has no flag for a drawing without a verdict: it becomes a recognised one.
    """
    folder.mkdir()
    for label, name in enumerate(source.classes):
        strokes = read_class(source, label)
        flags = np.where(strokes.recognized == UNKNOWN, RECOGNIZED, strokes.recognized).tolist()
        (folder / f"{name}.bin").write_bytes(to_bin(as_lists(strokes), flags) * times)


def write_ndjson(source: Source, folder: Path) -> None:
    """Write an `.ndjson` file per class into a new folder."""
    folder.mkdir()
    for label, name in enumerate(source.classes):
        strokes = read_class(source, label)
        lines = to_ndjson(as_lists(strokes), strokes.recognized.tolist(), name)
        (folder / f"{name}.ndjson").write_bytes(lines)


def read_class(source: Source, label: int) -> Strokes:
    """Return all drawings of a class of a source of strokes."""
    drawings = source.read(label, 0, source.counts[label]).drawings
    assert isinstance(drawings, Strokes), "the source was opened for strokes"
    return drawings
