"""The order digest: the same sum for any number of ranks, of stops, and of batches."""

from __future__ import annotations

from itertools import pairwise
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from quickdraw_dist.data.order.digest import OrderDigest, mix_identities
from quickdraw_dist.distributed.ranks import processor_group
from tests.support.processes.ranks import run_ranks

Identity = tuple[int, int]
"""Label and row."""

IDENTITIES = st.lists(
    st.tuples(st.integers(0, 344), st.integers(0, 340_028)), min_size=2, max_size=60, unique=True
)


def mixed(epoch: int, first: int, identities: list[Identity]) -> int:
    """By definition, of drawings at positions from `first` on."""
    labels = np.array([label for label, _ in identities], np.uint16)
    rows = np.array([row for _, row in identities], np.uint32)
    positions = np.arange(first, first + len(rows), dtype=np.uint64)
    return mix_identities(epoch, positions, labels, rows)


def add(digest: OrderDigest, epoch: int, first: int, identities: list[Identity]) -> None:
    """As a loader delivers them."""
    labels = torch.tensor([label for label, _ in identities], dtype=torch.int64)
    digest.add(epoch, first, labels, np.array([row for _, row in identities], np.uint32))


# -- the sum ---------------------------------------------------------------------------------------

GOLDEN = 4501098297518459494


def test_it_is_frozen() -> None:
    """Checkpoints hold digests; a release that computes others could not tell right from wrong."""
    assert mixed(3, 1000, list(zip(range(5), range(7, 12), strict=True))) == GOLDEN


@given(IDENTITIES, st.lists(st.integers(0, 60)), st.integers(0, 90), st.integers(0, 2**40))
def test_it_is_the_same_for_any_partition(
    identities: list[Identity], cuts: list[int], epoch: int, first: int
) -> None:
    """Runs on 2 and on 8 ranks compare equal only if parts add up to the whole."""
    ends = sorted({0, len(identities), *(cut for cut in cuts if cut < len(identities))})
    parts = [mixed(epoch, first + start, identities[start:stop]) for start, stop in pairwise(ends)]
    assert sum(parts) % 2**64 == mixed(epoch, first, identities)


@given(IDENTITIES, st.data())
def test_it_sees_a_change(identities: list[Identity], data: st.DataObject) -> None:
    """Two drawings swapped, one replaced, another epoch or position: each must show."""
    a, b = data.draw(st.lists(st.sampled_from(range(len(identities))), min_size=2, max_size=2))
    before = mixed(1, 500, identities)
    if a != b:
        swapped = list(identities)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        assert mixed(1, 500, swapped) != before
    label, row = identities[a]
    for other in ((label ^ 1, row), (label, row ^ 1), (row & 0xFFFF, label)):
        if other != identities[a]:
            assert mixed(1, 500, [*identities[:a], other, *identities[a + 1 :]]) != before
    assert mixed(2, 500, identities) != before
    assert mixed(1, 501, identities) != before
    assert mixed(1, 500, []) == 0


# -- over a run ------------------------------------------------------------------------------------

Part = tuple[int, int, int]
"""Epoch, first position, and drawings."""

PARTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2**40), st.integers(0, 200)), max_size=8
)


def drawings(part: Part) -> list[Identity]:
    """Some, other ones for every part."""
    epoch, first, count = part
    return [((first + at) % 345, (epoch + first // 345 + at) % 2**32) for at in range(count)]


def sum_of(parts: list[Part], before: int = 0) -> str:
    """By definition, each part by itself."""
    digests = (mixed(part[0], part[1], drawings(part)) for part in parts)
    return f"{sum(digests, before) % 2**64:016x}"


@given(PARTS, PARTS)
@example([(0, 0, 16_383)], [(0, 16_383, 16_385), (0, 32_768, 1)])
@example([(0, 5, 40_000), (1, 0, 7)], [(1, 7, 40_000)])
def test_batches_and_stops_change_nothing(before: list[Part], after: list[Part]) -> None:
    """However many drawings come at once; a second process goes on from the first's checkpoint."""
    first, second = OrderDigest(), OrderDigest()
    for part in before:
        add(first, part[0], part[1], drawings(part))
    assert first.total()() == sum_of(before)
    second.resume(first.total()())
    for part in after:
        add(second, part[0], part[1], drawings(part))
    assert second.total()() == sum_of(before + after)


def test_what_is_counted_may_be_used_again() -> None:
    """A loader makes another batch where this one was."""
    digest, labels, rows = OrderDigest(), torch.zeros(3, dtype=torch.int64), np.ones(3, np.uint32)
    digest.add(0, 0, labels, rows)
    labels.fill_(7)
    rows.fill(7)
    assert int(digest.total()(), 16) == mixed(0, 0, [(0, 1)] * 3)


RANKS = 3


def _rank(rank: int, size: int, parts: list[Part]) -> list[str]:
    digest = OrderDigest(processor_group(60))
    digest.resume(f"{2**64 - 1:016x}")
    answers = []
    for part in parts[rank::size]:
        add(digest, part[0], part[1], drawings(part))
        answers.append(digest.total())
    return [answer() for answer in reversed(answers)][::-1]  # each is of its own moment


def test_ranks_add_up(processes: ForkServerContext, tmp_path: Path) -> None:
    """Three real ranks: sums beyond 2^64 included, asked for at every step and read later, in any
    order, as a checkpoint's thread does."""
    parts = [(step % 2, step * 50, 50) for step in range(3 * RANKS)]
    answers, *_ = run_ranks(processes, RANKS, tmp_path, _rank, parts)
    assert answers == [sum_of(parts[: RANKS * step], 2**64 - 1) for step in (1, 2, 3)]
