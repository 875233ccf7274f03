"""What this device can do at best: matrix products and copies."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.measure import best_seconds

_REPEATS = 5


def chosen_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """The GPU's name, or 'cpu'."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def matrix_flops_per_second(device: torch.device, kind: torch.dtype, side: int) -> float:
    """Rate of the product of two square matrices of random numbers of this type."""
    one, other = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    return 2 * side**3 / best_device_seconds(lambda: torch.mm(one, other), device)


def copied_bytes_per_second(source: torch.Tensor, target: torch.Tensor) -> float:
    """Bytes per second that a copy between two tensors, equal in size, copies.

    A copy within one memory reads and writes these bytes, so it moves twice as many.
    """
    gpu = next((t.device for t in (source, target) if t.is_cuda), source.device)
    copy = best_device_seconds(lambda: target.copy_(source, non_blocking=True), gpu)
    return source.nbytes / copy


def best_device_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, from a few calls in a row, so that launching kernels does not count."""

    def repeated() -> None:
        for _ in range(_REPEATS):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return best_seconds(repeated) / _REPEATS
