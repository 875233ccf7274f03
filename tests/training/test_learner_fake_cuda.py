"""Forward passes and update on fake CUDA tensors: no operator touches the host or waits for it.

Fake tensors have a device, but no memory. They need a build of torch for CUDA, not a GPU, and have
no backward pass there: gradients are made up. See docs/cuda.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from quickdraw_dist import models
from quickdraw_dist.base.settings import Augment, Model, Optimizer, Settings, Strokes, Train
from quickdraw_dist.data.drawings.strokes.tiles import TILE, TilesPerDrawing
from quickdraw_dist.data.stream.batch import StrokeBatch
from quickdraw_dist.distributed import stragglers
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.training.learner import Learner
from tests.support.data.datasets import Dataset
from tests.support.data.strokes import with_content

pytestmark = pytest.mark.skipif(
    not torch.backends.cuda.is_built() or torch.cuda.is_available(),
    reason="no CUDA device here, faked or real, without a build of torch for CUDA",
)

BATCH = 48
WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique")
"""Operators whose result the host has to know."""


class Watch(TorchDispatchMode):
    """Collects the operators that run, and those among them that the host would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [value for value in (*args, out) if isinstance(value, torch.Tensor)]
        self.seen.add(name)
        if name in WAITS or any(tensor.device.type == "cpu" for tensor in tensors):
            self.waits.append(name)
        return out


def on_fake_cuda(module: nn.Module) -> nn.Module:
    """Give a module fake weights and buffers of the same kinds."""
    for part in module.modules():
        for owned in (part._parameters, part._buffers):
            for name, value in owned.items():
                if value is not None:
                    like = {"dtype": value.dtype, "device": "cuda"}
                    fake = torch.empty_strided(value.shape, value.stride(), **like)
                    owned[name] = nn.Parameter(fake) if owned is part._parameters else fake
    return module


def on_fake(content: str) -> torch.Tensor | StrokeBatch:
    """A batch of drawings; of strokes, three tiles each."""

    def zeros(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device="cuda")

    if content == "bitmaps":
        return zeros(BATCH, 28, 28)
    per_drawing = TilesPerDrawing(3.0, 1.0)
    tiles = zeros(per_drawing.capacity(BATCH), TILE, 4)
    first = 3 * np.arange(BATCH + 1)
    return StrokeBatch(tiles, zeros(BATCH, dtype=torch.int32), zeros(BATCH), first, per_drawing)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("content", "channels"), [("bitmaps", 1), ("strokes", 1), ("strokes", 4)])
def test_nothing_touches_the_host(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, precision: str, content: str, channels: int
) -> None:
    """Augmentation, network, loss, clipping, AdamW (torch cannot fake its SGD), skip flag, average
    and metrics."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(stragglers, "mark", lambda: 0.0)
    settings = Settings(
        model=Model(width=8, dropout=0.5),
        augment=Augment(affine=True, flip=0.5, erase=0.5, thickness=0.5),
        train=Train.model_validate(
            {"global_batch": BATCH, "device": "cuda", "precision": precision, "compile": "off",
             "micro_batch": 20}
        ),
        optimizer=Optimizer(warmup_drawings=0),
        strokes=Strokes.model_validate({"channels": channels, "unrecognized_weight": 0.5}),
    )  # fmt: skip
    network = models.build(settings.model, len(dataset.manifest.classes), channels)
    monkeypatch.setattr(Learner, "_build_model", lambda _: on_fake_cuda(network))

    def backward(learner: Learner, loss: torch.Tensor) -> None:
        learner.scaler.scale(loss)
        for parameter in learner.model.parameters():
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(Learner, "_backward", backward)
    with FakeTensorMode(), torch.no_grad():
        world = World(0, 1, 0, 1, torch.device("cuda:0"))
        manifest = with_content(dataset.manifest, content)
        learner = Learner(settings, world, manifest, 100 * BATCH)
        drawings = on_fake(content)
        labels = torch.zeros(BATCH, dtype=torch.int64, device="cuda")
        with Watch() as watch:
            for number in range(2):
                learner.step(drawings, labels, number)
    moved = "grid_sampler_2d" if content == "bitmaps" else "scatter_reduce_"
    assert {"convolution", moved, "_fused_adamw_"} <= watch.seen
    assert watch.waits == []
