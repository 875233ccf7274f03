"""Read ahead: shards into the node cache before their turn, decoded pieces in order of need."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from quickdraw_dist.data.stream.cache import ShardCache
from quickdraw_dist.data.stream.reader import SplitReader


class ShardPrefetch:
    """Fetches shards in order of need, a few ahead of those that are being decoded.

    Lanes change shards at about the same time. Without prefetch the store would idle while a shard
    of each lane is used up, and then be asked for one of every lane at once.
    """

    def __init__(
        self, reader: SplitReader, cache: ShardCache, shards: Iterable[int], fetchers: int,
        ahead: int,
    ) -> None:  # fmt: skip
        """Take `shards` in order of need, repetitions allowed. `fetchers` fetch at once, up to
        `ahead` beyond those reached; a negative number (no spare room in the cache) means 0."""
        self._reader, self._cache, self._ahead = reader, cache, max(0, ahead)
        self._order = list(dict.fromkeys(shards))
        self._turn = {shard: turn for turn, shard in enumerate(self._order)}
        self._fetched: list[Future[object]] = []  # of the first shards in `_order`
        self._pool = ThreadPoolExecutor(fetchers, thread_name_prefix="fetch")

    def reach(self, shard: int) -> None:
        """Fetch this shard and those `ahead`; its blocks are read next. One thread calls this."""
        stop = self._turn[shard] + 1 + self._ahead
        for coming in self._order[len(self._fetched) : stop]:
            url, entry = self._reader.url(coming), self._reader.shards[coming]
            self._fetched.append(self._pool.submit(self._cache.path, url, entry))

    def wait(self, shard: int) -> None:
        """Wait until a shard that was reached is in the cache; any thread may call this.

        Raises:
            CorruptError, FileNotFoundError, StorageError: it could not be fetched.
        """
        self._fetched[self._turn[shard]].result()

    def close(self) -> None:
        """Cancel fetches that have not begun, and wait for those that have."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def decoding_threads(threads: int, shards: ShardPrefetch | None) -> Iterator[ThreadPoolExecutor]:
    """Open a pool of decoding threads that may wait for `shards`.

    On leaving, `shards` is closed first, as threads may wait for it. Then tasks that have not begun
    are cancelled and the others waited for: afterwards no thread writes anywhere.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        yield pool
    finally:
        if shards is not None:
            shards.close()
        pool.shutdown(wait=True, cancel_futures=True)


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_ahead(
    pool: ThreadPoolExecutor, task: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int
) -> Iterator[_Result]:
    """Yield `task(item)` for every item, in their order, computed up to `ahead` items early.

    Items are taken in the caller's thread.

    Raises:
        Exception: what the task raised, when its result's turn comes.
    """
    running: deque[Future[_Result]] = deque()
    for item in items:
        running.append(pool.submit(task, item))
        if len(running) > ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
