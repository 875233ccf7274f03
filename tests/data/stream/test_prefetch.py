"""Shards come into the cache in the order of need, a few ahead, a few at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path

import pytest

from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.data.stream.prefetch import ShardsAhead
from tests.support.caching import base, downloads, held, open_cached, shards_of
from tests.support.datasets import Dataset
from tests.support.gcs.local import Store
from tests.support.gcs.server import Request, Response

pytestmark = pytest.mark.usefixtures("no_thread_left")

ORDER = [2, 0, 4, 1, 3]
"""In which shards are needed: not that of their names."""


@contextmanager
def opened(
    dataset: Dataset, cache: Path, fetchers: int, ahead: int, order: list[int] = ORDER
) -> Iterator[ShardsAhead]:
    reader = open_cached(dataset, cache)
    assert reader.cache is not None
    shards = ShardsAhead(reader, reader.cache, order, fetchers, ahead)
    try:
        yield shards
    finally:
        shards.close()


@pytest.mark.parametrize("ahead", [-3, 0, 1, 2, 9])
def test_only_so_many_more_than_were_reached(
    remote: Store, dataset: Dataset, tmp_path: Path, ahead: int
) -> None:
    """Further ahead, and a small cache would throw out what is in use to hold what is not. One
    that has no room to spare fetches what was reached, and nothing else."""
    with opened(dataset, tmp_path, 1, ahead, [2, 0, 2, 4, 0, 1, 2, 3]) as shards:
        for number, shard in enumerate(ORDER):
            shards.reach(shard)
            shards.reach(ORDER[0])  # its blocks are asked for again and again
            shards.wait(shard)
            coming = ORDER[: number + 1 + max(ahead, 0)]
            for fetched in coming:
                shards.wait(fetched)
            want = {base(shards_of(dataset)[shard]) for shard in coming}
            assert set(held(tmp_path)) == want
    assert downloads(remote, dataset) == [at in ORDER for at in range(len(shards_of(dataset)))]


@pytest.mark.parametrize("fetchers", [1, 2, 3])
def test_so_many_at_once_in_the_order_of_need(
    remote: Store, dataset: Dataset, tmp_path: Path, fetchers: int
) -> None:
    """Each one under way is a shard in memory: more than were granted must not be."""
    together, lock = threading.Barrier(fetchers), threading.Lock()
    now = most = 0
    asked: list[str] = []

    def intercept(request: Request) -> Response | None:
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
            asked.append(request.path)
        if len(asked) <= fetchers:
            together.wait()  # the first ones all have to be there at once
        reply = remote.server.gcs.answer(request)
        with lock:
            now -= 1
        return reply

    remote.intercept = intercept
    with opened(dataset, tmp_path, fetchers, 9) as shards:
        shards.reach(ORDER[0])
        for shard in ORDER:
            shards.wait(shard)
    assert most == fetchers
    names = [base(shards_of(dataset)[shard]) for shard in ORDER]
    assert {path.rpartition("%2F")[2] for path in asked[:fetchers]} == set(names[:fetchers])


def test_an_error_is_the_waiters(remote: Store, dataset: Dataset, tmp_path: Path) -> None:
    """Only of the shard that could not be had; what came before it is there."""
    remote.server.gcs.store.insert(
        "bucket", {"name": f"data/{shards_of(dataset)[4].name}"}, memoryview(b"short"), {}
    )
    with opened(dataset, tmp_path, 1, 9) as shards:
        shards.reach(ORDER[0])
        for shard in ORDER:
            if shard == 4:
                for _ in range(2):
                    with pytest.raises(CorruptError, match=base(shards_of(dataset)[4])):
                        shards.wait(shard)
            else:
                shards.wait(shard)


def test_closing_lets_no_more_begin(remote: Store, dataset: Dataset, tmp_path: Path) -> None:
    """A signal in the middle of an epoch: what is under way is waited for, the rest is not."""
    arrived, go_on = threading.Event(), threading.Event()

    def intercept(request: Request) -> Response | None:
        arrived.set()
        go_on.wait(1.0)  # a close that cancels nothing lets it pass, and is found out
        return None

    remote.intercept = intercept
    with opened(dataset, tmp_path, 1, 9) as shards:
        shards.reach(ORDER[0])
        arrived.wait()
        closing = threading.Thread(target=shards.close)
        closing.start()
        with pytest.raises(CancelledError):
            shards.wait(ORDER[-1])
        go_on.set()
        closing.join()
        shards.wait(ORDER[0])
    assert sum(downloads(remote, dataset)) == 1
