"""What the machine itself can do with drawings, on one thread: the floor under every reader."""

from __future__ import annotations

import gzip
import mmap
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import deflate
import numpy as np
from isal import igzip, isal_zlib

from benchmarks.measure import report
from benchmarks.our_cases import load_array
from quickdraw_dist import storage

_DRAWINGS = 262_144
_BLOCK = 1_024
_REPEATS = 5


def main(folder: str) -> None:
    """Print drawings a second of every limit, the best of some tries each."""
    pixels, _ = load_array(Path(folder), _DRAWINGS)
    rng = np.random.default_rng(1)
    pixels = pixels[rng.permutation(len(pixels))].reshape(len(pixels), -1)
    copy, batch = np.empty_like(pixels), np.empty((4_096, pixels.shape[1]), np.uint8)
    order = rng.permutation(len(pixels))[: len(pixels) // 4_096 * 4_096].reshape(-1, 4_096)
    block = pixels[:_BLOCK].tobytes()
    fast = igzip.compress(block, 2, mtime=0)

    def gather() -> None:
        for index in order:
            np.take(pixels, index, axis=0, out=batch, mode="clip")

    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(pixels.data)
        file.flush()

        def read() -> None:
            file.seek(0)
            file.readinto(copy.data)

        def mapped() -> None:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            np.copyto(copy.reshape(-1), np.frombuffer(view, np.uint8))

        limits = {
            "memory copy": _rate(lambda: np.copyto(copy, pixels), len(pixels)),
            "warm file, read": _rate(read, len(pixels)),
            "warm file, mapped and copied": _rate(mapped, len(pixels)),
            "row gather into a batch": _rate(gather, order.size),
            "crc32c": _rate(lambda: storage.crc32c(pixels.data), len(pixels)),
        }
    limits |= {
        "gzip decode, libdeflate": _rate(lambda: deflate.gzip_decompress(fast), _BLOCK),
        "gzip decode, isal": _rate(lambda: isal_zlib.decompress(fast, wbits=31), _BLOCK),
        "gzip decode, zlib": _rate(lambda: zlib.decompress(fast, 31), _BLOCK),
        "gzip encode, isal level 2": _rate(lambda: igzip.compress(block, 2, mtime=0), _BLOCK),
        "gzip encode, zlib level 6": _rate(lambda: gzip.compress(block, 6, mtime=0), _BLOCK),
    }
    report(len(pixels), 1.0, limits=limits)


def _rate(work: Callable[[], object], drawings: int) -> int:
    """Drawings a second of the fastest of some tries: a limit is what the machine can do at all."""
    best = float("inf")
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return round(drawings / best)


if __name__ == "__main__":
    main(sys.argv[1])
