"""Lanes and parts of ranks: what fits together, and what is said where it does not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from math import gcd

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.data.order.order import evaluation_pieces, resolve_lanes
from quickdraw_dist.data.order.share import Share
from tests.support.orders import Place


@pytest.mark.parametrize(
    ("global_batch", "world_size", "lanes"),
    [(4096, 1, 64), (4096, 64, 64), (100, 4, 4), (96, 8, 32), (4096, 65, 512), (7, 1, 1)],
)
def test_auto_lanes(global_batch: int, world_size: int, lanes: int) -> None:
    """The rule is written in a checkpoint's number of lanes: it must not drift."""
    assert resolve_lanes("auto", global_batch, world_size) == lanes


@given(st.integers(1, 3000), st.integers(1, 600), st.just("auto") | st.integers(1, 3000))
def test_resolved_lanes_fit(global_batch: int, world_size: int, lanes: int | str) -> None:
    """What is accepted must divide the batch and give every rank a drawing; where something is
    refused, what is suggested must be accepted."""
    try:
        resolved = resolve_lanes(lanes, global_batch, world_size)
    except RefusedError as error:
        for other_lanes, other_batch in suggested(str(error)):
            resolve_lanes(other_lanes, other_batch, world_size)
        return
    assert global_batch % resolved == 0
    assert world_size <= resolved <= global_batch
    most = 64 if world_size <= 64 else 512 if world_size <= 512 else 1024
    assert resolved == (gcd(global_batch, most) if lanes == "auto" else lanes)


REFUSED = [
    ("auto", 1000, 16),
    ("auto", 100, 8),
    ("auto", 4096 + 32, 64),
    ("auto", 1000, 100),
    (7, 100, 4),
    (24, 4096, 8),
    (5, 96, 2),
    (2, 96, 3),
    (2, 64, 3),
    (4, 4096, 8),
    ("auto", 4, 8),
    ("auto", 1, 64),
]

HARD = [
    pytest.param("auto", 6000, 600, id="more than 512 ranks"),
    pytest.param("auto", 3, 7, id="batch smaller than ranks that are no power of two"),
    pytest.param(16, 3, 7, id="batch smaller than ranks, with lanes"),
    pytest.param(7, 100, 8, id="lanes that do not divide, gcd smaller than the ranks"),
    pytest.param(2, 100, 8, id="no multiple of the ranks divides the batch"),
]


def suggested(message: str) -> Iterator[tuple[int | str, int]]:
    """The (lanes, global batch) that a refusal calls right."""
    advice = re.split(r"[:;]", message, maxsplit=1)[1]
    for value in re.findall(r"--stream\.lanes auto with --train\.global_batch (\d+)", advice):
        yield "auto", int(value)


def check_refusal(lanes: int | str, global_batch: int, world_size: int) -> None:
    with pytest.raises(RefusedError) as refused:
        resolve_lanes(lanes, global_batch, world_size)
    message = str(refused.value)
    named = re.match(r"--(train\.global_batch|stream\.lanes) (\d+):", message)
    assert named, message
    assert named[2] == str(global_batch if named[1] == "train.global_batch" else lanes)
    assert str(world_size) in message or global_batch % (1 if lanes == "auto" else int(lanes))
    advice = list(suggested(message))
    assert advice, f"names no value that would be right: {message}"
    for other_lanes, other_batch in advice:
        resolve_lanes(other_lanes, other_batch, world_size)


@pytest.mark.parametrize(("lanes", "global_batch", "world_size"), REFUSED)
def test_what_a_refusal_suggests_works(
    lanes: int | str, global_batch: int, world_size: int
) -> None:
    """Advice that is refused in turn costs a user of a cluster a queue each time."""
    check_refusal(lanes, global_batch, world_size)


@pytest.mark.parametrize(("lanes", "global_batch", "world_size"), HARD)
def test_what_a_refusal_suggests_works_where_it_is_hard(
    lanes: int | str, global_batch: int, world_size: int
) -> None:
    """As above, for numbers of ranks that are no power of two, or more than 512."""
    check_refusal(lanes, global_batch, world_size)


# -- parts of ranks ---------------------------------------------------------------------------


@given(st.integers(1, 10_000), st.integers(1, 600))
def test_parts_tile_the_batch_and_differ_by_one(global_batch: int, world_size: int) -> None:
    """The mean over ranks is the mean over the batch only for parts this even."""
    assume(world_size <= global_batch)
    shares = [Share.of_rank(global_batch, rank, world_size) for rank in range(world_size)]
    assert shares[0].start == 0
    assert shares[-1].stop == global_batch
    assert all(a.stop == b.start for a, b in pairwise(shares))
    sizes = {share.drawings for share in shares}
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=5), min_size=1, max_size=6),
    st.integers(1, 40),
)
def test_evaluation_parts_cover_the_split_once(shards: list[list[int]], world_size: int) -> None:
    """A metric over a split counts every drawing once, whatever the number of ranks."""
    places: list[Place] = []
    sizes = []
    for rank in range(world_size):
        pieces = evaluation_pieces(shards, rank, world_size)
        assert all(len(piece) > 0 for piece in pieces)
        sizes.append(sum(map(len, pieces)))
        places += [(p.shard, p.block, at) for p in pieces for at in range(p.start, p.stop)]
    assert places == [
        (shard, block, at)
        for shard, blocks in enumerate(shards)
        for block, count in enumerate(blocks)
        for at in range(count)
    ]
    assert max(sizes) - min(sizes) <= 1
