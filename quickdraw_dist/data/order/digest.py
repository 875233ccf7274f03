"""The proof of order: one number over all drawings delivered to all ranks, whoever they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from quickdraw_dist.base.hashing import Array64, key64, mix64

_TOGETHER = 16_384
"""Drawings that are mixed at once. Fewer would hold the interpreter lock as often for less, of more
the numbers leave the processor's cache."""


def mix_identities(
    epoch: int, positions: Array64, labels: NDArray[np.integer[Any]], rows: NDArray[np.uint32]
) -> int:
    """Sum modulo 2^64 of a hash of (epoch, position, class, row) over delivered drawings.

    Args:
        epoch: which pass.
        positions: (n,) in the epoch.
        labels: (n,) as read from the shard.
        rows: (n,) as read from the shard.
    """
    identities = labels.astype(np.uint64)
    identities <<= np.uint64(32)
    identities |= rows
    identities ^= mix64(positions ^ np.uint64(key64("digest", epoch)))
    return int(np.add.reduce(mix64(identities), dtype=np.uint64))


class OrderDigest:
    """Sum modulo 2^64 over all drawings so far; equal sums prove equal orders.

    The ranks' parts are added over a gloo group of their own, on processor tensors and in the
    background: neither the device nor a step waits for it.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Nothing has been delivered; `group` is of all ranks, None for one alone."""
        self._before = 0  # of all ranks, in the processes before this one
        self._own = 0  # of this rank, in this process, but for what waits
        self._epoch = self._waiting = 0  # so many drawings of this epoch
        self._positions, self._labels = np.empty((2, _TOGETHER), np.uint64)
        self._rows = np.empty(_TOGETHER, np.uint32)
        self._group = group

    def resume(self, digest: str) -> None:
        """Go on from a checkpoint's figure."""
        self._before = int(digest, 16)

    def add(self, epoch: int, first: int, labels: torch.Tensor, rows: NDArray[np.uint32]) -> None:
        """Count drawings that this rank has trained on, (n,) on the processor; `first` is the
        position in the epoch of the first of them, the others follow it."""
        done = 0
        while done < len(rows):
            if epoch != self._epoch or self._waiting == _TOGETHER:
                self._mix()
                self._epoch = epoch
            count = min(len(rows) - done, _TOGETHER - self._waiting)
            into, part = (slice(at, at + count) for at in (self._waiting, done))
            self._positions[into] = np.arange(first + done, first + done + count)
            self._labels[into] = labels[part].numpy()
            self._rows[into] = rows[part]
            self._waiting += count
            done += count

    def _mix(self) -> None:
        of = slice(self._waiting)
        digest = mix_identities(self._epoch, self._positions[of], self._labels[of], self._rows[of])
        self._own = (self._own + digest) % 2**64
        self._waiting = 0

    def total(self) -> Callable[[], str]:
        """Ask for the sum over all ranks as of now, 16 hexadecimal digits; each rank asks at the
        same step. The answer waits for the others, and may be had from any thread."""
        self._mix()
        # int64 addition wraps, which is addition modulo 2^64.
        parts = torch.tensor([self._own - (self._own >> 63 << 64)])
        work = None
        if self._group is not None:
            work = dist.all_reduce(parts, group=self._group, async_op=True)

        def answer() -> str:
            if work is not None:
                work.wait()
            return f"{(self._before + int(parts)) % 2**64:016x}"

        return answer
