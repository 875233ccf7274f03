"""Sizes as text."""

from __future__ import annotations

import pytest

from quickdraw_dist.base.units import size_text


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
