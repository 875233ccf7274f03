"""The least work of a drawing, against counts made by hand."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.train_speed import work
from quickdraw_dist.base.settings import Model
from quickdraw_dist.models import build


def _small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4),
                         nn.ReLU(), nn.Flatten(), nn.Linear(4 * 784, 5, bias=False))  # fmt: skip


def test_flops_are_those_of_products() -> None:
    convolution, linear = 2 * 784 * 4 * 9, 2 * 4 * 784 * 5
    # Backward, each product is done again for weights and for inputs, but the drawing needs none.
    assert work.training_flops(_small()) == 2 * convolution + 3 * linear


def test_bytes_are_those_of_the_layers_that_move() -> None:
    convolution, linear = 3 * 784 + 2 * 4 * 784, 3 * 4 * 784 + 2 * 5
    assert work.training_bytes(_small(), 2) == 2 * (convolution + linear)


def test_the_model_is_as_before() -> None:
    model = build(Model(width=4), 7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    work.training_bytes(model, 4)
    work.optimizer_bytes(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training


def test_floors() -> None:
    model = _small()
    flops, moved = work.training_flops(model), work.training_bytes(model, 4)
    arithmetic, memory = work.floor_rates(model, 10**12, 4, 5 * flops, 7 * moved)
    assert arithmetic == 5
    assert abs(memory - 7) < 1e-6
    # A smaller batch pays for the optimizer's bytes more often.
    assert work.floor_rates(model, 1, 4, flops, moved)[1] < 1
