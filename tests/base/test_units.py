"""Sizes and counts as text."""

from __future__ import annotations

import pytest

from quickdraw_dist.base.units import counted, size_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (12_345_678, "12.3 MB"),
        (39_534_192_544, "39.5 GB"),
    ],
)
def test_size_text(count: float, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 epochs"),
        (1, "1 epoch"),
        (1.0, "1 epoch"),
        (0.5, "0.5 epochs"),
        (2000, "2,000 epochs"),
    ],
)
def test_counted(count: float, text: str) -> None:
    """Nobody reads "1 epochs"."""
    assert counted(count, "epoch") == text
