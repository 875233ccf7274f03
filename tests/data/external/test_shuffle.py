"""Passes over external tars: every drawing once in each, shuffled as far as memory allows."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.data.external.shuffle import DRAWING_BYTES, read_drawings, shuffled_passes
from tests.support.data.tars import block_of, write_tar


def write_blocks(folder: Path, sizes: list[int]) -> list[str]:
    """A tar with one block per size; rows are numbered from the first tar to the last."""
    firsts = itertools.accumulate([0, *sizes])
    return [
        str(write_tar(folder / f"{at}.tar", [block_of(range(first, first + size))] if size else []))
        for at, (first, size) in enumerate(zip(firsts, sizes, strict=False))
    ]


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    initial=st.integers(1, 60),
    capacity=st.integers(1, 60),
)
def test_every_pass_has_every_drawing_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], initial: int, capacity: int
) -> None:
    """Whatever the sizes of shards and memory."""
    urls, total = write_blocks(tmp_path_factory.mktemp("passes"), sizes), sum(sizes)
    drawings = shuffled_passes(urls, 5, initial, capacity, key=7)
    if not total:
        with pytest.raises(CorruptError) as caught:
            next(drawings)
        assert caught.value.subject.startswith(urls[0])
        return
    for _ in range(3):
        one = list(itertools.islice(drawings, total))
        assert sorted(row for _, _, row in one) == list(range(total))
        assert all(label == row % 5 and pixels == bytes([row]) * 784 for pixels, label, row in one)


def test_shuffles_as_far_as_memory_goes(tmp_path: Path) -> None:
    """Of 20 blocks in a row, all of one class each, a batch has nearly all with memory for all,
    and few with memory for few."""
    blocks = [block_of(range(50 * at, 50 * at + 50)) for at in range(20)]
    url = str(write_tar(tmp_path / "x.tar", blocks))
    reached = {}
    for capacity in (100, 1000):
        drawings = shuffled_passes([url], 5, 400, capacity, key=1)
        rows = np.array([row for _, _, row in itertools.islice(drawings, 350, 400)])
        reached[capacity] = len(set((rows // 50).tolist()))
    assert reached[100] < 10 < 14 <= reached[1000]


def test_memory_of_a_drawing(tmp_path: Path) -> None:
    """The capacity of the buffer is memory divided by this."""
    for drawing in read_drawings(write_blocks(tmp_path, [300]), 5):
        pixels, label, row = map(sys.getsizeof, drawing)
        assert pixels + label + row + sys.getsizeof(drawing) < DRAWING_BYTES
