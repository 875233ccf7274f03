"""Collections happen where they are asked for, and nowhere else."""

from __future__ import annotations

import gc
import weakref

import pytest

from quickdraw_dist.base import garbage


class Knot:
    """In a cycle with itself: only the collector frees it."""

    def __init__(self) -> None:
        self.self = self


def test_only_by_hand() -> None:
    """A cycle stays, whatever is allocated meanwhile, until it is collected."""
    with garbage.collected_by_hand():
        knot = weakref.ref(Knot())
        assert len([[] for _ in range(100_000)]) == 100_000  # many times the usual threshold
        assert knot() is not None
        garbage.collect()
        assert knot() is None


def test_afterwards_it_is_as_before() -> None:
    """Also after an error: what uses the trainer as a library keeps its collector."""
    frozen = gc.get_freeze_count()
    with pytest.raises(ValueError), garbage.collected_by_hand():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
    assert gc.get_freeze_count() <= frozen
