"""The order digest is the same for any number of ranks, stops and batches."""

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
    """The digest by definition, of drawings at positions from `first` on."""
    labels = np.array([label for label, _ in identities], np.uint16)
    rows = np.array([row for _, row in identities], np.uint32)
    positions = np.arange(first, first + len(rows), dtype=np.uint64)
    return mix_identities(epoch, positions, labels, rows)


def add(digest: OrderDigest, epoch: int, first: int, identities: list[Identity]) -> None:
    """Add drawings as a loader delivers them."""
    labels = torch.tensor([label for label, _ in identities], dtype=torch.int64)
    digest.add(epoch, first, labels, np.array([row for _, row in identities], np.uint32))


# -- the sum ---------------------------------------------------------------------------------------

GOLDEN = 4501098297518459494


def test_the_digest_is_frozen() -> None:
    """Checkpoints hold digests; a release that computes others could not tell right from wrong."""
    assert mixed(3, 1000, list(zip(range(5), range(7, 12), strict=True))) == GOLDEN


@given(IDENTITIES, st.lists(st.integers(0, 60)), st.integers(0, 90), st.integers(0, 2**40))
def test_the_digest_is_the_same_for_any_partition(
    identities: list[Identity], cuts: list[int], epoch: int, first: int
) -> None:
    """Runs on 2 and on 8 ranks compare equal only if pieces add up to the whole."""
    ends = sorted({0, len(identities), *(cut for cut in cuts if cut < len(identities))})
    pieces = [mixed(epoch, first + start, identities[start:stop]) for start, stop in pairwise(ends)]
    assert sum(pieces) % 2**64 == mixed(epoch, first, identities)


@given(IDENTITIES, st.data())
def test_the_digest_sees_a_change(identities: list[Identity], data: st.DataObject) -> None:
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

Stretch = tuple[int, int, int]
"""Epoch, first position and number of drawings."""

STRETCHES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2**40), st.integers(0, 200)), max_size=8
)


def drawings(stretch: Stretch) -> list[Identity]:
    """Drawings that differ from stretch to stretch."""
    epoch, first, count = stretch
    return [((first + at) % 345, (epoch + first // 345 + at) % 2**32) for at in range(count)]


def sum_of(stretches: list[Stretch], before: int = 0) -> str:
    """The digest by definition, each stretch by itself."""
    digests = (mixed(it[0], it[1], drawings(it)) for it in stretches)
    return f"{sum(digests, before) % 2**64:016x}"


@given(STRETCHES, STRETCHES)
@example([(0, 0, 16_383)], [(0, 16_383, 16_385), (0, 32_768, 1)])
@example([(0, 5, 40_000), (1, 0, 7)], [(1, 7, 40_000)])
def test_batches_and_stops_change_nothing(before: list[Stretch], after: list[Stretch]) -> None:
    """However many drawings come at once; a second process resumes from the first's checkpoint."""
    first, second = OrderDigest(), OrderDigest()
    for stretch in before:
        add(first, stretch[0], stretch[1], drawings(stretch))
    assert first.total()() == sum_of(before)
    second.resume(first.total()())
    for stretch in after:
        add(second, stretch[0], stretch[1], drawings(stretch))
    assert second.total()() == sum_of(before + after)


def test_added_arrays_may_be_reused() -> None:
    """A loader reuses the memory of a batch."""
    digest, labels, rows = OrderDigest(), torch.zeros(3, dtype=torch.int64), np.ones(3, np.uint32)
    digest.add(0, 0, labels, rows)
    labels.fill_(7)
    rows.fill(7)
    assert int(digest.total()(), 16) == mixed(0, 0, [(0, 1)] * 3)


RANKS = 3


def _rank(rank: int, size: int, stretches: list[Stretch]) -> list[str]:
    digest = OrderDigest(processor_group(60))
    digest.resume(f"{2**64 - 1:016x}")
    answers = []
    for stretch in stretches[rank::size]:
        add(digest, stretch[0], stretch[1], drawings(stretch))
        answers.append(digest.total())
    return [answer() for answer in reversed(answers)][::-1]  # each is of its own moment


def test_ranks_add_up(processes: ForkServerContext, tmp_path: Path) -> None:
    """Three real ranks: sums beyond 2^64 included, started at every step and read later, in any
    order, as a checkpoint's thread does."""
    stretches = [(step % 2, step * 50, 50) for step in range(3 * RANKS)]
    answers, *_ = run_ranks(processes, RANKS, tmp_path, _rank, stretches)
    assert answers == [sum_of(stretches[: RANKS * step], 2**64 - 1) for step in (1, 2, 3)]
