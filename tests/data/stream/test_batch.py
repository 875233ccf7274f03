"""Batches of strokes hold their drawings, in arrays of one size."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from quickdraw_dist.data.drawings.strokes.tiles import TILE, Tiles, TilesPerDrawing, pack
from quickdraw_dist.data.stream.batch import StrokeBatch, noise
from tests.support.data.strokes import random_strokes

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

DEVICES = ["cpu", pytest.param("cuda", marks=cuda)]

USUAL = TilesPerDrawing(5.0, 7.0)

SIZES = [USUAL, TilesPerDrawing(0.3, 0.1), TilesPerDrawing(0, 0)]
"""What a dataset's statistics say of the drawings of these tests: about right, or too little."""


def check_holds(batch: StrokeBatch, want: Tiles) -> None:
    """Fail unless the batch is these drawings and unused tiles."""
    tiles, owners, numbers, counts, recognized = (tensor.cpu().numpy() for tensor in batch.inputs())
    assert len(batch) == len(want) == len(counts)
    assert np.array_equal(counts, want.counts)
    assert np.array_equal(recognized, want.recognized)
    assert np.array_equal(batch.first, want.first)
    used = int(want.first[-1])
    assert np.array_equal(tiles[:used], want.segments)
    assert np.array_equal(owners[:used], np.repeat(np.arange(len(want)), np.diff(want.first)))
    assert np.array_equal(numbers[:used], (np.arange(used) - want.first[owners[:used]]) * TILE)
    assert np.all(owners[used:] == len(want))
    assert np.all(numbers[used:] == 0)
    assert tiles.shape == (batch.per_drawing.capacity(len(want), used), TILE, 4)
    types = [tiles.dtype, owners.dtype, numbers.dtype, counts.dtype, recognized.dtype]
    assert types == [np.uint8, np.int64, np.int32, np.int32, np.uint8]


@given(
    st.integers(0, 60), st.lists(st.integers(0, 60), max_size=4), st.sampled_from(SIZES)
)  # fmt: skip
def test_a_batch_holds_its_parts_and_a_larger_one_has_more_tiles(
    count: int, cuts: list[int], sizes: TilesPerDrawing
) -> None:
    """One batch after the other in the same memory, which is kept where it is too small for one."""
    memory = StrokeBatch.allocate(count, sizes, pin=False)
    assert memory.counts.tolist() == [0] * count
    for key in (1, 2):
        tiles = pack(random_strokes(count, key))
        edges = [0, *sorted(min(cut, count) for cut in cuts), count]
        batch = memory.filled([tiles.slice(*edge) for edge in pairwise(edges)])
        check_holds(batch, tiles)
        if len(batch.tiles) == len(memory.tiles):
            assert batch.tiles.data_ptr() == memory.tiles.data_ptr()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("parts", [1, 2, 3, 7, 60, 70])
def test_parts_are_those_of_tensor_split(device: str, sizes: TilesPerDrawing, parts: int) -> None:
    """Micro-batches of drawings and of labels are cut in the same places, also a part's parts."""
    tiles = pack(random_strokes(61))
    whole = StrokeBatch.allocate(61, sizes, pin=device == "cuda").filled([tiles])
    whole = whole.to(torch.device(device), non_blocking=True)
    assert whole.tiles.device.type == device
    numbers, start = torch.arange(61).tensor_split(parts), 0
    got = whole.tensor_split(parts)
    assert list(map(len, got)) == list(map(len, numbers))
    for part in got:
        want = tiles.slice(start, start + len(part))
        check_holds(part, want)
        for piece, edge in zip(part.tensor_split(2), (0, -(-len(part) // 2)), strict=True):
            check_holds(piece, want.slice(edge, edge + len(piece)))
        start += len(part)


@given(
    st.builds(TilesPerDrawing, st.floats(0, 8), st.floats(0, 4)),
    st.integers(1, 200),
    st.integers(1, 9),
)
@example(TilesPerDrawing(2.0, 0.8), 85, 2)  # 3 tiles per drawing fit the whole, not its halves
def test_parts_of_noise_have_the_shape_of_any_of_their_size(
    sizes: TilesPerDrawing, count: int, parts: int
) -> None:
    """A compiled step meets the shapes of micro-batches in warm-up, not in the first step."""
    made = noise(count, sizes)
    assert isinstance(made, StrokeBatch)
    for part in (made, *made.tensor_split(parts)):
        assert len(part.tiles) == sizes.capacity(len(part))
        assert int(part.first[-1]) == int((part.owners < len(part)).sum())
