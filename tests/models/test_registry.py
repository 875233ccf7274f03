"""Networks by name: each maps drawings to logits; an unknown name is refused with suggestions."""

from __future__ import annotations

import pytest
import torch

from quickdraw_dist import models
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Model


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (4, 28), (1, 8), (4, 56), (1, 61)])
@pytest.mark.parametrize("name", models.names())
def test_every_network_learns_from_drawings(name: str, channels: int, side: int) -> None:
    """The trainer needs of any network: (B, channels, side, side) to (B, classes), a gradient for
    every parameter (DDP hangs without one), and autocast to bf16."""
    torch.set_num_threads(1)
    network = models.build(Model(name=name, width=4, dropout=0.0), 7, channels, side)
    drawings = torch.randn(3, channels, side, side)
    logits = network(drawings)
    assert logits.shape == (3, 7)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert network(drawings).shape == (3, 7)


def test_the_default_name_exists() -> None:
    """A run without --model.name must start."""
    assert Model().name in models.names()


def test_settings_reach_the_network() -> None:
    """model.width and model.dropout change the network."""

    def size(width: int) -> int:
        return sum(p.numel() for p in models.build(Model(width=width), 5).parameters())

    assert size(4) < size(8) < size(16)
    network = models.build(Model(width=2, dropout=0.75), 5)
    rates = [m.p for m in network.modules() if isinstance(m, torch.nn.Dropout)]
    assert rates == [0.75]


def test_the_seed_decides_the_first_weights() -> None:
    """All ranks build the same network from train.seed; another seed gives other weights."""

    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        parameters = models.build(Model(width=2), 5).parameters()
        return torch.cat([p.detach().flatten() for p in parameters])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(("name", "suggested"), [("sketchcn", True), ("xyz", False)])
def test_unknown_name(name: str, suggested: bool) -> None:
    """A misspelt network is refused with the nearest name and all known ones."""
    with pytest.raises(RefusedError) as refused:
        models.build(Model(name=name), 5)
    error = refused.value
    assert (error.subject, error.value) == ("--model.name", name)
    assert ("Did you mean 'sketchcnn'?" in error.remedy) == suggested
    assert error.remedy.endswith("Choose one of: " + ", ".join(models.names()))
