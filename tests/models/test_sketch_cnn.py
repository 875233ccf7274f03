"""SketchCNN: shapes, initialisation, and the size and cost that its docstring states."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from quickdraw_dist.models.sketch_cnn import SketchCNN


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("width", [1, 3, 16])
@pytest.mark.parametrize("classes", [2, 345])
@pytest.mark.parametrize("count", [1, 5])
def test_shapes(width: int, classes: int, count: int) -> None:
    """Any width, class count and evaluation batch, down to one drawing."""
    network = SketchCNN(classes, width).eval()
    assert network(torch.zeros(count, 1, 28, 28)).shape == (count, classes)


def test_blocks_are_as_stated() -> None:
    """Three blocks of two convolutions, 1, 2 and 4 times the width; 28 to 14 to 7 to 4."""
    network = SketchCNN(345, width=5)
    channels = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert channels == [5, 5, 10, 10, 20, 20]
    sides, inputs = [], torch.zeros(1, 1, 28, 28)
    for layer in network.eval().features:
        inputs = layer(inputs)
        if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
            sides.append(inputs.shape[-1])
    assert sides == [14, 7, 4]


@pytest.mark.parametrize("side", range(8, 65))
def test_sides(side: int) -> None:
    """Of any side, at most 4x4 values per channel reach the hidden layer."""
    network = SketchCNN(3, width=1, channels=4, side=side).eval()
    inputs = torch.zeros(1, 4, side, side)
    pooled = network.features(inputs).shape[-1]
    assert 2 <= pooled <= 4
    assert network(inputs).shape == (1, 3)


def stated(unit: str) -> str:
    """The number before a unit in the class's docstring."""
    found = re.search(rf"([\d.]+)\s+{unit}", SketchCNN.__doc__ or "")
    assert found is not None
    return found.group(1)


def test_parameters_are_as_stated() -> None:
    """The docstring's size is of the default network on the full dataset."""
    count = sum(p.numel() for p in SketchCNN(345).parameters())
    assert stated("M parameters") == f"{count / 1e6:.1f}"


def test_cost_is_as_stated() -> None:
    """The cost of one drawing is of a forward pass; a multiply and an add count as two."""
    network = SketchCNN(345).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 1, 28, 28))
    assert stated("GFLOP") == f"{counter.get_total_flops() / 1e9:.2f}"


def test_evaluation_is_deterministic() -> None:
    """Logits of a drawing do not depend on dropout or on the other drawings of its batch."""
    torch.manual_seed(0)
    network = SketchCNN(5, width=4).eval()
    drawings = torch.randn(6, 1, 28, 28)
    logits = network(drawings)
    assert torch.equal(logits, network(drawings))
    alone = torch.cat([network(drawing[None]) for drawing in drawings])
    torch.testing.assert_close(alone, logits, rtol=1e-4, atol=1e-5)


def test_training_drops_and_keeps_statistics() -> None:
    """Training drops outputs and updates batch-norm statistics; evaluation changes neither."""
    torch.manual_seed(0)
    network = SketchCNN(5, width=4, dropout=0.5)
    drawings = torch.randn(6, 1, 28, 28)
    assert not torch.equal(network(drawings), network(drawings))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert before["features.1.num_batches_tracked"] == 2
    network.eval()(drawings)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_channels_last_is_the_same_network() -> None:
    """train.channels_last changes the speed, not the logits."""
    torch.manual_seed(0)
    network = SketchCNN(5, width=4).eval()
    drawings = torch.randn(3, 1, 28, 28)
    logits = network(drawings)
    moved = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(moved(drawings), logits, rtol=1e-4, atol=1e-5)


def test_signal_keeps_its_size() -> None:
    """He initialisation: activations neither vanish nor explode at the start."""
    torch.manual_seed(0)
    network = SketchCNN(345, width=16).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * 9
            assert float(module.weight.detach().std()) == pytest.approx(
                (2 / fan_out) ** 0.5, rel=0.2
            )
    logits = network(torch.randn(16, 1, 28, 28))
    assert 0.01 < float(logits.detach().std()) < 10
