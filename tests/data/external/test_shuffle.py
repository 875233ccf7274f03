"""Passes over external tars: every drawing once in each, shuffled as far as memory goes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.data.external.shuffle import ShuffledPasses
from tests.support.tars import block_of, write_tar

pytestmark = pytest.mark.usefixtures("no_thread_left")


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    capacity=st.integers(1, 60),
    draws=st.lists(st.integers(1, 40), min_size=1, max_size=12),
)
def test_every_pass_has_every_drawing_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], capacity: int, draws: list[int]
) -> None:
    """Whatever the sizes of shards, memory and batches; blocks are cut where they have to be."""
    folder = tmp_path_factory.mktemp("passes")
    total = sum(sizes)
    firsts = itertools.accumulate([0, *sizes])
    urls = [
        str(write_tar(folder / f"{at}.tar", [block_of(range(first, first + size))] if size else []))
        for at, (first, size) in enumerate(zip(firsts, sizes, strict=False))
    ]
    passes = ShuffledPasses(urls, 5, capacity, key=7)
    taken: list[int] = []
    for count in draws:
        arrays = np.zeros((count, 28, 28), np.uint8), np.zeros(count, np.uint16)
        rows = np.zeros(count, np.uint32)
        if not total:
            with pytest.raises(CorruptError, match="no drawings in any"):
                passes.draw(*arrays, rows)
            return
        passes.draw(*arrays, rows)
        assert np.array_equal(arrays[1], rows % 5) and np.array_equal(arrays[0][:, 0, 0], rows)
        taken += rows.tolist()
    for start in range(0, len(taken), total):
        one = taken[start : start + total]
        assert len(set(one)) == len(one)


def test_shuffles_as_far_as_memory_goes(tmp_path: Path) -> None:
    """Of 20 blocks in a row, all of one class each, a batch has nearly all with memory for all,
    and few with memory for few."""
    blocks = [block_of(range(50 * at, 50 * at + 50)) for at in range(20)]
    url = str(write_tar(tmp_path / "x.tar", blocks))
    reached = {}
    for capacity in (100, 1000):
        passes = ShuffledPasses([url], 5, capacity, key=1)
        rows = np.zeros(50, np.uint32)
        for _ in range(8):
            passes.draw(np.zeros((50, 28, 28), np.uint8), np.zeros(50, np.uint16), rows)
        reached[capacity] = len(set((rows // 50).tolist()))
    assert reached[100] < 10 < 14 <= reached[1000]
