"""Shards are fetched into the cache in order of need, a few ahead, a few at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path

import pytest

from quickdraw_dist.base.errors import CorruptError
from quickdraw_dist.data.stream.prefetch import ShardPrefetch
from tests.support.data.caching import base, downloads, held, open_cached, shards_of
from tests.support.data.datasets import Dataset
from tests.support.gcs.local import Store
from tests.support.gcs.server import Request, Response

pytestmark = pytest.mark.usefixtures("no_thread_left")

ORDER = [2, 0, 4, 1, 3]
"""The order in which shards are needed, which is not that of their names."""


@contextmanager
def opened(
    dataset: Dataset, cache: Path, fetchers: int, ahead: int, order: list[int] = ORDER
) -> Iterator[ShardPrefetch]:
    reader = open_cached(dataset, cache)
    assert reader.cache is not None
    shards = ShardPrefetch(reader, reader.cache, order, fetchers, ahead)
    try:
        yield shards
    finally:
        shards.close()


@pytest.mark.parametrize("ahead", [-3, 0, 1, 2, 9])
def test_only_a_few_more_than_were_reached(
    remote: Store, dataset: Dataset, tmp_path: Path, ahead: int
) -> None:
    """Further ahead, a small cache would evict shards in use. A cache without spare room fetches
    what was reached, and nothing else."""
    with opened(dataset, tmp_path, 1, ahead, [2, 0, 2, 4, 0, 1, 2, 3]) as shards:
        for number, shard in enumerate(ORDER):
            shards.reach(shard)
            shards.reach(ORDER[0])  # once per block
            shards.wait(shard)
            coming = ORDER[: number + 1 + max(ahead, 0)]
            for fetched in coming:
                shards.wait(fetched)
            want = {base(shards_of(dataset)[shard]) for shard in coming}
            assert set(held(tmp_path)) == want
    assert downloads(remote, dataset) == [at in ORDER for at in range(len(shards_of(dataset)))]


@pytest.mark.parametrize("fetchers", [1, 2, 3])
def test_fetches_run_in_parallel_in_order_of_need(
    remote: Store, dataset: Dataset, tmp_path: Path, fetchers: int
) -> None:
    """Each shard in flight is held in memory: there must not be more than planned."""
    barrier, lock = threading.Barrier(fetchers), threading.Lock()
    now = most = 0
    requested: list[str] = []

    def intercept(request: Request) -> Response | None:
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
            requested.append(request.path)
        if len(requested) <= fetchers:
            barrier.wait()  # the first fetches must overlap
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
    assert {path.rpartition("%2F")[2] for path in requested[:fetchers]} == set(names[:fetchers])


def test_an_error_is_the_waiters(remote: Store, dataset: Dataset, tmp_path: Path) -> None:
    """Of the failed shard only; those before it are in the cache."""
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


def test_closing_cancels_fetches_that_have_not_begun(
    remote: Store, dataset: Dataset, tmp_path: Path
) -> None:
    """On a signal, fetches in flight are waited for and the others cancelled."""
    arrived, proceed = threading.Event(), threading.Event()

    def intercept(request: Request) -> Response | None:
        arrived.set()
        proceed.wait(1.0)  # times out if close cancels nothing, and the test fails below
        return None

    remote.intercept = intercept
    with opened(dataset, tmp_path, 1, 9) as shards:
        shards.reach(ORDER[0])
        arrived.wait()
        closing = threading.Thread(target=shards.close)
        closing.start()
        with pytest.raises(CancelledError):
            shards.wait(ORDER[-1])
        proceed.set()
        closing.join()
        shards.wait(ORDER[0])
    assert sum(downloads(remote, dataset)) == 1
