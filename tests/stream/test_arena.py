"""Buffers for blocks: handed out once, given back, and gathered from."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.stream.arena import BYTES_A_DRAWING, Arena


@given(st.integers(1, 12), st.lists(st.integers(1, 5), max_size=30), st.randoms())
def test_no_buffer_is_handed_out_twice(buffers: int, counts: list[int], random: object) -> None:
    """Two windows in one buffer would be each other's drawings."""
    arena = Arena(buffers, 3)
    taken: list[list[int]] = []
    for count in counts:
        free = buffers - sum(map(len, taken))
        got = arena.take(count)
        assert (got is None) == (count > free)
        if got is not None:
            assert len(got) == count
            taken.append(got)
        elif taken:
            arena.give_back(taken.pop(random.randrange(len(taken))))  # type: ignore[attr-defined]
        held = [buffer for window in taken for buffer in window]
        assert len(held) == len(set(held))
        assert set(held) <= set(range(buffers))
    arena.clear()
    assert sorted(arena.take(buffers) or []) == list(range(buffers))


def test_gather_takes_what_was_written() -> None:
    """Places are buffer * capacity + place in the block, also where blocks are shorter."""
    arena = Arena(3, 4)
    for buffer, count in ((0, 4), (1, 2), (2, 3)):
        drawings, labels, rows = arena.views(buffer, count)
        assert (drawings.shape, labels.shape, rows.shape) == ((count, 28, 28), (count,), (count,))
        drawings[:] = 10 * buffer + np.arange(count, dtype=np.uint8)[:, None, None]
        labels[:], rows[:] = 100 * buffer + np.arange(count), 1000 * buffer + np.arange(count)
    index = np.array([10, 0, 5, 3, 4, 8])
    pixels = np.zeros((6, 28, 28), np.uint8)
    classes, identities = np.zeros(6, np.uint16), np.zeros(6, np.uint32)
    arena.gather(index, pixels, classes, identities)
    assert pixels[:, 5, 7].tolist() == pixels[:, 0, 0].tolist() == [22, 0, 11, 3, 10, 20]
    assert classes.tolist() == [202, 0, 101, 3, 100, 200]
    assert identities.tolist() == [2002, 0, 1001, 3, 1000, 2000]


def test_a_drawings_bytes_are_those_of_its_arrays() -> None:
    """The memory that is granted is counted with this number."""
    views = Arena(2, 8).views(1, 8)
    assert sum(array.nbytes for array in views) == 8 * BYTES_A_DRAWING
