"""Batches in the making: what is put somewhere is found there, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.data.shards import blocks
from quickdraw_dist.data.shards.blocks import Block
from quickdraw_dist.data.stream.batch import batch_bytes
from quickdraw_dist.data.stream.ring import Ring, ring_bytes

ELSEWHERE = 7777
"""Row of drawings that belong to no batch."""


def numbered(numbers: list[int]) -> Block:
    """A block whose drawings, labels and rows are these numbers; the pixels differ in a drawing."""
    rows = np.array(numbers, np.uint32)
    pixels = (rows[:, None] + np.arange(784)).astype(np.uint8).reshape(-1, 28, 28)
    return Block(pixels, (rows % 345).astype(np.uint16), rows)


def holds(ring: Ring, step: int, numbers: list[int]) -> bool:
    """Whether a step's batch is just that."""
    drawings, labels, rows = ring.batch(step)
    want = numbered(numbers)
    return (
        np.array_equal(drawings.numpy(), want.drawings)
        and np.array_equal(labels.numpy(), want.labels)
        and np.array_equal(rows, want.rows)
    )


def put(ring: Ring, places: list[int], block: Block) -> None:
    """As a loader does with a window."""
    ring.put_drawings(np.array(places, np.int64), block.drawings)
    ring.put_identities(np.array(places, np.int64), block.labels, block.rows)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 20), st.data())
def test_drawings_get_to_their_places(
    steps: int, count: int, first: int, data: st.DataObject
) -> None:
    """In any order, in blocks of any length, among drawings that belong to no batch."""
    nowhere, ring = steps * count, Ring(steps, count, pin=False)
    places = [(first + step) % steps * count + at for step in range(steps) for at in range(count)]
    empty = data.draw(st.integers(0, 5))
    coming = data.draw(st.permutations(places + [nowhere] * empty))
    size = data.draw(st.integers(1, len(coming)))
    for at in range(0, len(coming), size):
        here = coming[at : at + size]
        put(ring, here, numbered([ELSEWHERE if place == nowhere else place for place in here]))
    for step in range(first, first + steps):
        begin = step % steps * count
        assert holds(ring, step, list(range(begin, begin + count)))


def test_a_step_lies_where_an_earlier_one_lay() -> None:
    """That many before it: the other batches stay as they are."""
    ring = Ring(3, 2, pin=False)
    for step in range(9):
        begin = step % 3 * 2
        put(ring, [begin + 1, begin], numbered([2 * step + 1, 2 * step]))
        for other in range(max(0, step - 2), step + 1):
            assert holds(ring, other, [2 * other, 2 * other + 1])
    assert ring.batch(8)[0].data_ptr() == ring.batch(5)[0].data_ptr() == ring.batch(2)[0].data_ptr()


def test_a_block_may_be_lent() -> None:
    """A part of what was read is put in place from there: it begins anywhere, and is read only."""
    lent = blocks.decode(blocks.encode(numbered(list(range(12))), "0-0", "none"), 12)
    assert not lent.drawings.flags.writeable
    assert not lent.drawings.flags.owndata
    ring = Ring(1, 5, pin=False)
    put(ring, [0, 1, 2, 3, 4], lent.slice(3, 8))
    assert holds(ring, 0, [3, 4, 5, 6, 7])


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (7, 33)])
def test_a_rings_bytes_are_those_of_its_arrays(steps: int, count: int) -> None:
    """The memory that is granted is counted with this number."""
    drawings, labels, rows = Ring(steps, count, pin=False).batch(0)
    assert rows.base is not None
    taken = drawings.untyped_storage().nbytes() + labels.untyped_storage().nbytes()
    assert taken + rows.base.nbytes == ring_bytes(steps, count, pin=False)


@pytest.mark.parametrize(
    ("count", "pinned"), [(1, 1024 + 8 + 4), (100, 2**17 + 1024 + 400), (1024, 2**20 + 8192 + 4096)]
)
def test_pinned_memory_is_rounded_up(count: int, pinned: int) -> None:
    """As torch does it, array by array: up to twice as much."""
    assert batch_bytes(count, pin=True) == pinned
    assert batch_bytes(count, pin=False) == count * (784 + 8 + 4)
