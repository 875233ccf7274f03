"""The order digest: one number that proves which drawings were delivered at which positions.

It is a sum modulo 2^64 of a hash of (epoch, position, class, row) over the drawings *as delivered*,
taken from the labels and rows that were read and never from the plan. A sum does not depend on who
adds what when: runs with other world sizes, stops or batches have equal digests exactly if their
orders are equal, but for chance (2^-64).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from quickdraw_dist.base.hashing import Array64, key64, mix64

_MIXED_AT_ONCE = 16_384
"""Drawings hashed per call. Fewer would take the interpreter lock more often; more would not fit
the processor's cache."""


def mix_identities(
    epoch: int, positions: Array64, labels: NDArray[np.integer[Any]], rows: NDArray[np.uint32]
) -> int:
    """Return the digest of some delivered drawings.

    Args:
        epoch: the pass over the split, from 0.
        positions: (n,) in the epoch.
        labels: (n,) as read from the shard.
        rows: (n,) in the official file of the class, as read from the shard.
    """
    identities = labels.astype(np.uint64)
    identities <<= np.uint64(32)
    identities |= rows
    identities ^= mix64(positions ^ np.uint64(key64("digest", epoch)))
    return int(np.add.reduce(mix64(identities), dtype=np.uint64))


class OrderDigest:
    """The digest of a run so far, over all ranks and all processes the run has had.

    Ranks are summed over a gloo group of their own, on processor tensors and in the background:
    neither the device nor a step waits for it.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Start at 0. `group` holds all ranks; None for a single one."""
        self._before = 0  # all ranks, in earlier processes of the run
        self._own = 0  # this rank, in this process, without the drawings in the buffers
        self._epoch = 0  # of the drawings in the buffers
        self._buffered = 0
        self._positions, self._labels = np.empty((2, _MIXED_AT_ONCE), np.uint64)
        self._rows = np.empty(_MIXED_AT_ONCE, np.uint32)
        self._group = group

    def resume(self, digest: str) -> None:
        """Continue from a checkpoint's digest, 16 hexadecimal digits."""
        self._before = int(digest, 16)

    def add(self, epoch: int, first: int, labels: torch.Tensor, rows: NDArray[np.uint32]) -> None:
        """Add drawings that this rank has trained on; they are copied.

        Args:
            epoch: the pass over the split, from 0.
            first: position in the epoch of the first drawing; the others follow it.
            labels: (n,) on the processor.
            rows: (n,).
        """
        done = 0
        while done < len(rows):
            if epoch != self._epoch or self._buffered == _MIXED_AT_ONCE:
                self._mix()
                self._epoch = epoch
            count = min(len(rows) - done, _MIXED_AT_ONCE - self._buffered)
            target, source = (slice(at, at + count) for at in (self._buffered, done))
            self._positions[target] = np.arange(first + done, first + done + count)
            self._labels[target] = labels[source].numpy()
            self._rows[target] = rows[source]
            self._buffered += count
            done += count

    def _mix(self) -> None:
        full = slice(self._buffered)
        arrays = self._positions[full], self._labels[full], self._rows[full]
        self._own = (self._own + mix_identities(self._epoch, *arrays)) % 2**64
        self._buffered = 0

    def total(self) -> Callable[[], str]:
        """Start summing over all ranks, as of now; every rank calls it at the same step.

        Returns:
            A function, callable from any thread, that waits for the other ranks and returns the
            digest as 16 hexadecimal digits.
        """
        self._mix()
        # int64 addition wraps around, which is addition modulo 2^64.
        own = torch.tensor([self._own - (self._own >> 63 << 64)])
        work = None
        if self._group is not None:
            work = dist.all_reduce(own, group=self._group, async_op=True)

        def digest() -> str:
            if work is not None:
                work.wait()
            return f"{(self._before + int(own)) % 2**64:016x}"

        return digest
