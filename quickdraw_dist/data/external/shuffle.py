"""Shuffle a rank's external drawings with webdataset's buffer, pass after pass over its shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import webdataset

from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.base.hashing import key64, permutation
from quickdraw_dist.data.drawings.drawing import PIXELS
from quickdraw_dist.data.external.samples import decode, read_samples

Drawing = tuple[bytes, int, int]
"""Pixels, label and row."""

DRAWING_BYTES = PIXELS + 200
"""Memory of a `Drawing` in a list: Python's objects take 150 to 200 bytes beside the pixels."""


def read_drawings(urls: Sequence[str], classes: int) -> Iterator[Drawing]:
    """Yield the drawings of these shards in order.

    Raises:
        CorruptError: a sample that cannot be trained on; names it.
        StorageError, OSError: a shard could not be read.
    """
    for sample in read_samples(urls):
        block = decode(sample, classes)
        pixels = map(bytes, block.pixels.reshape(-1, PIXELS))
        yield from zip(pixels, block.labels.tolist(), block.rows.tolist(), strict=True)


def shuffled_passes(
    urls: Sequence[str], classes: int, initial: int, capacity: int, key: int
) -> Iterator[Drawing]:
    """Yield the drawings of these shards without end, each exactly once per pass.

    The sequence follows from the arguments and the version of webdataset.

    Args:
        urls: the shards; every pass reads them in another order.
        classes: number of classes.
        initial: drawings that are read before the first is yielded; from then on the buffer
            grows by one with each that is yielded, up to its capacity.
        capacity: drawings that the buffer holds at most.
        key: seeds the order of the shards and the buffer.

    Raises:
        CorruptError: a sample that cannot be trained on, or no drawing in any shard.
        StorageError, OSError: a shard could not be read.
    """
    for number in itertools.count():
        order = permutation(len(urls), key64(key, "pass", number))
        stored = read_drawings([urls[at] for at in order], classes)
        shuffle = webdataset.shuffle(capacity, initial=initial, seed=key64(key, "buffer", number))
        drawing = None
        for drawing in shuffle(stored):
            yield drawing
        if drawing is None:
            raise CorruptError(
                ", ".join(urls[:3]), None, f"no drawing in these {len(urls)} shards of one rank"
            )
