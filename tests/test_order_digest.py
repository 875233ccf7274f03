"""The order digest: the same sum for any number of ranks, of stops, and of checkpoints left out."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.order_digest import OrderDigest
from tests.ranks import run_ranks

BATCH = st.integers(0, 2**64 - 1)


def digest_of(batches: list[int]) -> str:
    """By definition."""
    return f"{sum(batches) % 2**64:016x}"


@given(st.lists(BATCH), st.lists(BATCH))
def test_a_stop_in_between_changes_nothing(before: list[int], after: list[int]) -> None:
    """The second process goes on from what the first one's checkpoint says."""
    first = OrderDigest()
    for batch in before:
        first.add(batch)
    second = OrderDigest()
    second.resume(first.total()())
    for batch in after:
        second.add(batch)
    assert second.total()() == digest_of(before + after)


def _rank(rank: int, size: int, batches: list[int]) -> list[str]:
    digest = OrderDigest()
    digest.resume("00000000000000ff")
    answers = []
    for batch in batches[rank::size]:
        digest.add(batch)
        answers.append(digest.total())
    return [answer() for answer in reversed(answers)][::-1]  # each is of its own moment


def test_ranks_add_up(processes: ForkServerContext, tmp_path: Path) -> None:
    """Three real ranks: sums beyond 2^63 and 2^64 included, asked for at every step and read
    later, in any order, as a checkpoint's thread does."""
    batches = [2**64 - 1, 2**63, 1, 2**63 - 1, 5, 2**64 - 7, 2**62, 2**63, 2**63 + 12]
    size = 3
    answers, *_ = run_ranks(processes, size, tmp_path, _rank, batches)
    assert answers == [digest_of([255, *batches[: size * step]]) for step in (1, 2, 3)]
