"""Lower bounds of the work of training a drawing: arithmetic, and bytes between chip and memory."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from quickdraw_dist.data.drawings.drawing import SIDE

_MOVERS = (nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d)
"""Layers that no compiler fuses with one another; normalisation and activation can be fused."""

_OPTIMIZER_FLOATS = 9
"""fp32 numbers moved per parameter and step: weight, two moments and average are read and written,
the gradient is read."""


def training_flops(model: nn.Module) -> float:
    """Count multiplications and additions per drawing, forward and backward, with torch's counter:
    matrix products and convolutions only, the convention for 'model FLOP/s'."""
    count = 8
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(count, 1, SIDE, SIDE)).sum().backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / count


def training_bytes(model: nn.Module, itemsize: int) -> float:
    """Bytes of activations and their gradients that one drawing moves at least.

    Each layer of `_MOVERS` reads its input and writes its output; backward, it reads its input
    and its output's gradient and writes its input's gradient. All other layers
    count as fused with one of these, which is more than any compiler does today.

    Args:
        model: from (B, 1, 28, 28) to logits.
        itemsize: bytes per activation.
    """
    moved = 0

    def add(_: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal moved
        moved += 3 * inputs[0].numel() + 2 * output.numel()

    watched = copy.deepcopy(model).eval()
    for layer in watched.modules():
        if isinstance(layer, _MOVERS):
            layer.register_forward_hook(add)
    with torch.no_grad():
        watched(torch.zeros(1, 1, SIDE, SIDE))
    return float(moved * itemsize)


def optimizer_bytes(model: nn.Module) -> float:
    """Bytes that AdamW and the moving average move per step, at any batch."""
    return float(sum(p.numel() for p in model.parameters()) * _OPTIMIZER_FLOATS * 4)


def floor_rates(
    model: nn.Module, batch: int, itemsize: int, flops_per_second: float, bytes_per_second: float
) -> tuple[float, float]:
    """Drawings per second that arithmetic alone and memory alone allow."""
    moved = training_bytes(model, itemsize) + optimizer_bytes(model) / batch
    return flops_per_second / training_flops(model), bytes_per_second / moved
