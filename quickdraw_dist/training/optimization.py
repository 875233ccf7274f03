"""How the weights move: AdamW, the schedule in drawings, the moving average."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from quickdraw_dist.base.settings import Optimizer

_WARMUP_SHARE = 0.05
"""Of the run, when optimizer.warmup_drawings is 'auto'."""


def learning_rate(settings: Optimizer, drawings: int, total_drawings: int) -> float:
    """The rate after `drawings` of a run of `total_drawings`: linear warmup, then cosine.

    A function of drawings alone, so that it does not change with batch or world size. The cosine
    is that of Loshchilov and Hutter, "SGDR" (2017), without restarts.
    """
    setting = settings.warmup_drawings
    warmup = setting if isinstance(setting, int) else round(_WARMUP_SHARE * total_drawings)
    if drawings < warmup:
        return settings.learning_rate * drawings / warmup
    done = min(1.0, (drawings - warmup) / max(1, total_drawings - warmup))
    cosine = (1 + math.cos(math.pi * done)) / 2
    return settings.learning_rate * (settings.final_share + (1 - settings.final_share) * cosine)


def make_optimizer(settings: Optimizer, model: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019), or SGD with Nesterov's momentum (Sutskever and others,
    2013); matrices and kernels decay, vectors do not."""
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
        # torch would take uninitialised memory for it where the very first step is skipped.
        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


class BufferBackup:
    """A model's buffers (batch norm's) as they were before a step, in case it is to be undone."""

    def __init__(self, model: nn.Module) -> None:
        """Buffers must stay the same tensors from now on."""
        self._buffers = list(model.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]
        kinds = {buffer.dtype for buffer in self._buffers}  # copied kind by kind: a launch each
        self._kinds = [
            [at for at, buffer in enumerate(self._buffers) if buffer.dtype == kind]
            for kind in sorted(kinds, key=str)
        ]

    def save(self) -> None:
        """Keep what they are now."""
        for kind in self._kinds:
            torch._foreach_copy_(
                [self._before[at] for at in kind], [self._buffers[at] for at in kind]
            )

    def restore(self, skipped: torch.Tensor) -> None:
        """Put back what was kept where `skipped`, a scalar on the device, is not 0."""
        undo = skipped.bool()
        for buffer, before in zip(self._buffers, self._before, strict=True):
            torch.where(undo, before, buffer, out=buffer)


class MovingAverage:
    """Exponential average of weights and batch-norm statistics, on the model's own device.

    The half-life is in drawings. Early on it is shorter, a tenth of what has been seen, so that
    the random first weights are forgotten.
    """

    def __init__(self, model: nn.Module, half_life_drawings: int) -> None:
        """Starts as a copy of the model."""
        self.half_life_drawings = half_life_drawings
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(
        self, model: nn.Module, batch_drawings: int, seen_drawings: int, skipped: torch.Tensor
    ) -> None:
        """Take in the model after a step of `batch_drawings`, the `seen_drawings`-th included.

        Where `skipped`, a scalar on the device, is 1, the average stays what it is.
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
        """Go on from a checkpoint's average."""
        for name, value in self.state.items():
            value.copy_(state[name])
