"""What the machine can do with drawings without any loader: an upper bound for every reader."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import deflate
import numpy as np
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from benchmarks.data_path.cases import BATCH, load_array
from benchmarks.measure import best_seconds, report
from quickdraw_dist.base import storage
from quickdraw_dist.data.drawings.drawing import PIXELS

_DRAWINGS = 262_144
_BLOCK = 1_024
_BATCHES = 128
"""Batches in a loader's ring buffer; a drawing may belong to any of them."""


def main(folder: str) -> None:
    """Print drawings per second of every limit, the best of a few tries."""
    pixels, _ = load_array(Path(folder), _DRAWINGS)
    rng = np.random.default_rng(1)
    whole = rng.permutation(len(pixels))[: len(pixels) // BATCH * BATCH]  # whole batches
    pixels = pixels[whole].reshape(len(whole), -1)
    copy, batch = np.empty_like(pixels), np.empty((BATCH, PIXELS), np.uint8)
    order = rng.permutation(len(pixels)).reshape(-1, BATCH)
    block = pixels[:_BLOCK].tobytes()
    fast = igzip.compress(block, 2, mtime=0)

    def gather() -> None:
        for index in order:
            np.take(pixels, index, axis=0, out=batch, mode="clip")

    limits = {
        "one thread: memory copy": _rate(lambda: np.copyto(copy, pixels), len(pixels)),
        "one thread: row gather into a batch": _rate(gather, order.size),
        "one thread: crc32c": _rate(lambda: storage.crc32c(pixels.data), len(pixels)),
    }
    coders: dict[str, Callable[[], object]] = {
        "gzip decode, libdeflate": lambda: deflate.gzip_decompress(fast),
        "gzip decode, isal": lambda: isal_zlib.decompress(fast, wbits=31),
        "gzip decode, zlib": lambda: zlib.decompress(fast, 31),
        "gzip encode, isal level 2": lambda: igzip.compress(block, 2, mtime=0),
        "gzip encode, zlib level 6": lambda: gzip.compress(block, 6, mtime=0),
    }
    limits |= {f"one thread: {name}": _rate(work, _BLOCK) for name, work in coders.items()}
    with TemporaryDirectory(dir=folder) as home:
        for suffix in ("raw", "gz"):
            limits |= _whole_path(Path(home, f"blocks.{suffix}"), pixels)
    report(len(pixels), 1.0, limits=limits)


def _whole_path(path: Path, pixels: NDArray[np.uint8]) -> dict[str, int]:
    """Measure the work per block that no loader can avoid: read it from a warm file into reused
    memory, decode it, compute its checksum, and copy its rows to random slots of a ring of batches.
    """
    packed = path.suffix == ".gz"
    blocks = [pixels[at : at + _BLOCK].tobytes() for at in range(0, len(pixels), _BLOCK)]
    if packed:
        blocks = [igzip.compress(block, 2, mtime=0) for block in blocks]
    path.write_bytes(b"".join(blocks))
    starts = np.cumsum([0, *map(len, blocks)]).tolist()
    ring = np.zeros(_BATCHES * BATCH * PIXELS, np.uint8).view(f"V{PIXELS}")
    slots = np.random.default_rng(2).permutation(len(ring)).reshape(-1, _BLOCK)
    scratch = storage.Scratch()

    def process(numbers: range) -> None:
        for number in numbers:
            start, size = starts[number], len(blocks[number])
            data: memoryview | bytearray = storage.read_range_into(scratch, str(path), start, size)
            if packed:
                data = deflate.gzip_decompress(data)
            storage.crc32c(data)
            ring[slots[number]] = np.frombuffer(data, f"V{PIXELS}")

    steps = "read, decode, checksum, rows" if packed else "read, checksum, rows"
    found = {}
    for threads, name in ((1, "one thread"), (2, "two threads")):
        numbers = [range(first, len(blocks), threads) for first in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            work = partial(_run_all, pool, process, numbers)
            found[f"{name}: {steps} in place"] = _rate(work, len(pixels))
    return found


def _run_all(
    pool: ThreadPoolExecutor, process: Callable[[range], None], numbers: list[range]
) -> None:
    for done in [pool.submit(process, chosen) for chosen in numbers]:
        done.result()


def _rate(work: Callable[[], object], drawings: int) -> int:
    """Drawings per second."""
    return round(drawings / best_seconds(work))


if __name__ == "__main__":
    main(sys.argv[1])
