"""A rank's external drawings without end: pass after pass over its shards, shuffled in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.base.hashing import key64, permutation, random64
from quickdraw_dist.data.drawings.drawing import SIDE
from quickdraw_dist.data.external.samples import decode, read_samples
from quickdraw_dist.data.shards.blocks import Block

_FIRST_BATCHES = 8
"""The first batch of a pass is drawn from so many; with each, the reach grows by one batch."""


class Supply:
    """The drawings of some shards, in order, in portions of any size."""

    def __init__(self, urls: Sequence[str], classes: int) -> None:
        """Nothing is opened yet."""
        self._blocks = (decode(sample, classes) for sample in read_samples(urls))
        self._rest: Block | None = None

    def read(
        self, drawings: NDArray[np.uint8], labels: NDArray[np.uint16], rows: NDArray[np.uint32]
    ) -> int:
        """Fill the arrays, (n, 28, 28), (n,) and (n,); returns how many came, fewer than n only
        at the end."""
        filled = 0
        while filled < len(labels):
            block = self._rest if self._rest is not None else next(self._blocks, None)
            if block is None:
                break
            here = slice(filled, min(len(labels), filled + len(block.labels)))
            some = here.stop - filled
            drawings[here], labels[here] = block.drawings[:some], block.labels[:some]
            rows[here] = block.rows[:some]
            self._rest = None
            if some < len(block.labels):
                self._rest = Block(block.drawings[some:], block.labels[some:], block.rows[some:])
            filled = here.stop
        return filled


class ShuffledPasses:
    """Every drawing of the shards once a pass: what is drawn makes room for what is read next.

    The sequence follows from the shards, the capacity, the sizes drawn and the key.
    """

    def __init__(self, urls: Sequence[str], classes: int, capacity: int, key: int) -> None:
        """At most `capacity` drawings are held and shuffled together."""
        self._urls, self._classes, self._key = urls, classes, key
        self._drawings = np.empty((capacity, SIDE, SIDE), np.uint8)
        self._labels = np.empty(capacity, np.uint16)
        self._rows = np.empty(capacity, np.uint32)
        self._held = self._draws = self._passes = 0
        self._supply, self._reach = self._next_pass(), 0

    def _next_pass(self) -> Supply:
        order = permutation(len(self._urls), key64(self._key, "pass", self._passes))
        self._passes += 1
        return Supply([self._urls[at] for at in order], self._classes)

    def draw(
        self, drawings: NDArray[np.uint8], labels: NDArray[np.uint16], rows: NDArray[np.uint32]
    ) -> None:
        """Fill the arrays, (n, 28, 28), (n,) and (n,) with the next drawings.

        Raises:
            CorruptError: a sample that cannot be trained on, or no drawing in any shard.
            StorageError, OSError: a shard could not be read.
        """
        count = len(labels)
        filled, empty_passes = 0, 0
        self._reach += count
        while filled < count:
            if not self._refill(_FIRST_BATCHES * count + self._reach):
                if empty_passes > 0:
                    raise CorruptError(
                        f"{', '.join(self._urls[:3])}: no drawings in any of these "
                        f"{len(self._urls)} shards of one rank"
                    )
                empty_passes += 1
                self._supply, self._reach = self._next_pass(), 0
                continue
            empty_passes = 0
            places = self._choose(min(count - filled, self._held))
            part = slice(filled, filled + len(places))
            drawings[part], labels[part] = self._drawings[places], self._labels[places]
            rows[part] = self._rows[places]
            self._remove(places)
            filled = part.stop

    def _refill(self, upto: int) -> int:
        """Read until so many drawings are held, or all that there is room for; returns how many
        are: fewer at the end of a pass."""
        upto = min(upto, len(self._labels))
        if self._held < upto:
            free = slice(self._held, upto)
            arrays = self._drawings[free], self._labels[free], self._rows[free]
            self._held += self._supply.read(*arrays)
        return self._held

    def _choose(self, count: int) -> NDArray[np.int64]:
        """Places of `count` different drawings, one at random of each of as many equal parts of
        those that are held, in random order."""
        self._draws += 1
        key = key64(self._key, "draw", self._draws)
        edges = np.arange(count + 1) * self._held // count
        within = random64(key, count) % np.diff(edges).astype(np.uint64)
        places: NDArray[np.int64] = edges[:-1] + within.astype(np.int64)
        return places[permutation(count, key64(key, "batch"))]

    def _remove(self, places: NDArray[np.int64]) -> None:
        """Close the gaps at these places with the last drawings."""
        self._held -= len(places)
        last = np.arange(self._held, self._held + len(places))
        movers = np.setdiff1d(last, places, assume_unique=True)
        gaps = np.sort(places[places < self._held])
        self._drawings[gaps] = self._drawings[movers]
        self._labels[gaps], self._rows[gaps] = self._labels[movers], self._rows[movers]
