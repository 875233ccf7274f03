"""Cases of the stroke path, one thread each: python -m benchmarks.strokes.cases CASE ARGUMENTS.

A rate is per second of the process's own CPU time, which other work on the machine changes less
than seconds of a clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import call_case, report
from benchmarks.strokes.files import read_class
from quickdraw_dist.data.drawings import raster
from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.drawings.strokes.arrays import Strokes
from quickdraw_dist.data.drawings.strokes.tiles import pack
from quickdraw_dist.data.shards import blocks, manifest
from quickdraw_dist.data.shards.schema import BlockEntry
from quickdraw_dist.data.stream.batch import StrokeBatch
from quickdraw_dist.models.stroke_raster import StrokeRaster

BATCH = 1_024
_DRAWINGS = 16 * BATCH
"""Rendered, packed and drawn; for cairo, which is slow, a quarter of them."""


def find_records(source: str) -> None:
    """Open a folder of stroke files, which reads each once for the first byte of every record."""
    started = time.process_time()
    opened = open_source(source, content="strokes")
    report(sum(opened.counts), time.process_time() - started)


def read(source: str) -> None:
    """Read all drawings of a source, class by class."""
    opened = open_source(source, content="strokes")

    def work() -> None:
        for label in range(len(opened.classes)):
            read_class(opened, label)

    _report(sum(opened.counts), work)


def decode(folder: str) -> None:
    """Decode the training split's blocks and compare their checksums, as the reader does."""
    stored = _stored_blocks(folder)

    def work() -> None:
        for data, entry in stored:
            assert blocks.decode(data, entry.drawings).crc == entry.crc32c

    _report(sum(entry.drawings for _, entry in stored), work)


def pack_tiles(folder: str) -> None:
    """Cut the strokes of blocks into tiles of segments, as the loader does."""
    decoded = _sample(folder)
    _report(sum(map(len, decoded)), lambda: [pack(strokes) for strokes in decoded])


def render(folder: str, channels: int) -> None:
    """Render batches of 1,024 drawings at 28 pixels with the compiled module; compare the ink of
    the last one with the official pixels. The first call, which compiles, is not timed."""
    torch.set_num_threads(1)
    per_drawing = manifest.read(folder).tiles_per_drawing
    assert per_drawing is not None, "a dataset of strokes"
    sample = Strokes.concatenate(_sample(folder))
    tiles = pack(sample)
    batches = [
        StrokeBatch.allocate(BATCH, per_drawing, pin=False).filled([tiles.slice(at, at + BATCH)])
        for at in range(0, len(sample) - BATCH + 1, BATCH)
    ]
    inputs = [batch.inputs()[:4] for batch in batches]
    module = torch.compile(StrokeRaster(channels=channels), dynamic=False, fullgraph=True)
    pictures = torch.cat([module(*tensors)[:, 0] for tensors in inputs[: len(inputs) // 4]])
    official = raster.official(sample.slice(0, len(pictures)))
    error = np.abs(255 * pictures.numpy() - official).mean()

    def work() -> None:
        for tensors in inputs:
            module(*tensors)

    _report(len(inputs) * BATCH, work, mean_error=round(float(error), 3))


def plain(folder: str) -> None:
    """Draw by the plain rule in numpy, as the manifest's pixel mean is made."""
    strokes = Strokes.concatenate(_sample(folder))
    _report(len(strokes), lambda: raster.plain(strokes))


def cairo(folder: str) -> None:
    """Draw with cairo, byte for byte as the official bitmaps."""
    strokes = Strokes.concatenate(_sample(folder, _DRAWINGS // 4))
    _report(len(strokes), lambda: raster.official(strokes))


def _report(drawings: int, work: Callable[[], object], **more: object) -> None:
    """Report the CPU time of calls, after one that fills caches, until it is a second."""
    work()
    calls, started, seconds = 0, time.process_time(), 0.0
    while seconds < 1:
        work()
        calls, seconds = calls + 1, time.process_time() - started
    report(calls * drawings, seconds, **more)


def _stored_blocks(folder: str) -> list[tuple[bytes, BlockEntry]]:
    """Load the bytes of the training split's blocks."""
    stored = []
    for shard in manifest.read(folder).splits["train"]:
        data = Path(folder, shard.name).read_bytes()
        stored += [(data[e.offset : e.offset + e.size], e) for e in shard.blocks]
    return stored


def _sample(folder: str, drawings: int = _DRAWINGS) -> list[Strokes]:
    """Load blocks of the training split with `drawings` in all, or all there are."""
    found: list[Strokes] = []
    for data, entry in _stored_blocks(folder):
        if sum(map(len, found)) >= drawings:
            break
        found.append(blocks.decode(data, entry.drawings).strokes)
    return found


if __name__ == "__main__":
    call_case(globals())
