"""How the weights move: AdamW, the schedule in drawings, the moving average."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from quickdraw_dist.config import Optimizer

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


def make_optimizer(settings: Optimizer, model: nn.Module, *, fused: bool) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019); matrices and kernels decay, vectors do not."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99), fused=fused)


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
    def update(self, model: nn.Module, batch_drawings: int, seen_drawings: int) -> None:
        """Take in the model after a step of `batch_drawings`, the `seen_drawings`-th included."""
        half_life = min(self.half_life_drawings, max(1, seen_drawings // 10))
        weight = 1 - 0.5 ** (batch_drawings / half_life)
        state = model.state_dict()
        floats = [name for name, value in self.state.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.state[name] for name in floats], [state[name] for name in floats], weight
        )
        for name, value in self.state.items():
            if not value.is_floating_point():
                value.copy_(state[name])

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a checkpoint's average."""
        for name, value in self.state.items():
            value.copy_(state[name])
