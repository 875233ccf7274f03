"""From stored bytes to a network input: the same for training, evaluation and later use."""

from __future__ import annotations

import pytest
import torch

from quickdraw_dist.models.input import Normalisation


def test_zero_mean_and_unit_variance() -> None:
    """Mean and standard deviation are on a scale of 0 to 1, as the manifest stores them."""
    generator = torch.Generator().manual_seed(0)
    drawings = torch.randint(256, (64, 28, 28), dtype=torch.uint8, generator=generator)
    scaled = drawings.double() / 255
    inputs = Normalisation(float(scaled.mean()), float(scaled.std())).apply(drawings)
    assert inputs.shape == (64, 1, 28, 28)
    assert inputs.dtype == torch.float32
    assert float(inputs.mean()) == pytest.approx(0, abs=1e-5)
    assert float(inputs.std()) == pytest.approx(1, abs=1e-3)


def test_linear_without_writing_to_its_input() -> None:
    """Bytes map in order to -mean/std (the background) .. (1 - mean)/std; the batch's buffer, which
    the loader reuses, keeps its values."""
    drawings = torch.arange(784).remainder(256).to(torch.uint8).view(1, 28, 28)
    before = drawings.clone()
    normalisation = Normalisation(0.2, 0.4)
    inputs = normalisation.apply(drawings).flatten()
    assert torch.equal(drawings, before)
    expected = (torch.arange(256).double() / 255 - 0.2) / 0.4
    torch.testing.assert_close(inputs[:256].double(), expected, atol=1e-6, rtol=1e-6)
    assert normalisation.background == pytest.approx(float(expected[0]))


def test_an_empty_batch() -> None:
    """A rank may have no drawings in the last batch of an evaluation."""
    empty = torch.zeros(0, 28, 28, dtype=torch.uint8)
    assert Normalisation(0.2, 0.4).apply(empty).shape == (0, 1, 28, 28)
