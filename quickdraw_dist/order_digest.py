"""The proof of order: one number over all drawings delivered to all ranks, whoever they were."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist


class OrderDigest:
    """Sum modulo 2^64 of the digests of all batches so far; equal sums prove equal orders.

    The ranks' parts are added over a gloo group of their own, on processor tensors and in the
    background: neither the device nor a step waits for it.
    """

    def __init__(self) -> None:
        """Nothing has been delivered; every rank makes one at the same point."""
        self._before = 0  # of all ranks, in the processes before this one
        self._own = 0  # of this rank, in this process
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def resume(self, digest: str) -> None:
        """Go on from a checkpoint's figure."""
        self._before = int(digest, 16)

    def add(self, digest: int) -> None:
        """Count a batch that this rank has trained on."""
        self._own = (self._own + digest) % 2**64

    def total(self) -> Callable[[], str]:
        """Ask for the sum over all ranks as of now, 16 hexadecimal digits; each rank asks at the
        same step. The answer waits for the others, and may be had from any thread."""
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
