"""Optimizers, the learning-rate schedule in drawings, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from quickdraw_dist.base.settings import Optimizer

_WARMUP_SHARE = 0.05
"""Share of a run's drawings that 'auto' gives to warmup."""


def learning_rate(settings: Optimizer, drawings: int, total_drawings: int) -> float:
    """Return the rate after `drawings` of a run of `total_drawings`: linear warmup, then cosine.

    A function of drawings alone, so that it does not change with batch or world size. Warmup after
    Goyal and others, "Accurate, Large Minibatch SGD" (2017); cosine after Loshchilov and Hutter,
    "SGDR" (2017), without restarts, down to `final_share` of the peak.
    """
    setting = settings.warmup_drawings
    warmup = setting if isinstance(setting, int) else round(_WARMUP_SHARE * total_drawings)
    if drawings < warmup:
        return settings.learning_rate * drawings / warmup
    done = min(1.0, (drawings - warmup) / max(1, total_drawings - warmup))
    cosine = (1 + math.cos(math.pi * done)) / 2
    return settings.learning_rate * (settings.final_share + (1 - settings.final_share) * cosine)


def make_optimizer(settings: Optimizer, model: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter, 2019) or SGD with Nesterov's momentum (Sutskever and
    others, 2013).

    Matrices and convolution kernels decay; biases and normalisation do not, after He and others,
    "Bag of Tricks" (2019). A `fused` optimizer reads the flag that skips a step on the device.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), fused=fused)
    sgd = torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, nesterov=True, fused=fused)
    for parameter in model.parameters():
        # If the first step is skipped, torch would leave this memory uninitialised.
        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


class BufferBackup:
    """Copy of a model's buffers (batch-norm statistics) from before a step, to undo a skipped step.

    The model must keep the same buffer tensors from construction on.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]
        # One kernel launch per type copies all buffers of that type.
        dtypes = sorted({buffer.dtype for buffer in self._buffers}, key=str)
        pairs = list(zip(self._before, self._buffers, strict=True))
        self._by_dtype = [[pair for pair in pairs if pair[0].dtype == dtype] for dtype in dtypes]

    def save(self) -> None:
        """Save the current buffer values."""
        for pairs in self._by_dtype:
            before, buffers = zip(*pairs, strict=True)
            torch._foreach_copy_(before, buffers)

    def restore(self, skipped: torch.Tensor) -> None:
        """Restore the saved values where `skipped`, a scalar on the device, is not 0."""
        undo = skipped.bool()
        for buffer, before in zip(self._buffers, self._before, strict=True):
            torch.where(undo, before, buffer, out=buffer)


class MovingAverage:
    """Exponential moving average of weights and batch-norm statistics, on the model's device.

    After `half_life_drawings` the old average counts half, whatever the batch size. Early in a run
    the half-life is a tenth of the drawings seen so far, which forgets the random first weights.
    Averages of weights: Polyak and Juditsky (1992); exponential ones: Tarvainen and Valpola, "Mean
    teachers" (2017).
    """

    def __init__(self, model: nn.Module, half_life_drawings: int) -> None:
        self.half_life_drawings = half_life_drawings
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(
        self, model: nn.Module, batch_drawings: int, seen_drawings: int, skipped: torch.Tensor
    ) -> None:
        """Move the average towards the model after a step of `batch_drawings`.

        `seen_drawings` are the run's so far, this step's included. Where `skipped`, a scalar on the
        device, is 1, the average stays unchanged.
        """
        half_life = min(self.half_life_drawings, max(1, seen_drawings // 10))
        weight = 1 - 0.5 ** (batch_drawings / half_life)
        state = model.state_dict()
        floats = [name for name, value in self.state.items() if value.is_floating_point()]
        averages = [self.state[name] for name in floats]
        moves = torch._foreach_sub([state[name] for name in floats], averages)
        torch._foreach_mul_(moves, (1 - skipped) * weight)
        torch._foreach_add_(averages, moves)
        for name, value in self.state.items():
            if not value.is_floating_point():
                value.copy_(state[name])

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load a checkpoint's average."""
        for name, value in self.state.items():
            value.copy_(state[name])
