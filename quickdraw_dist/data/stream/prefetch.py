"""Shards of a remote dataset on their way into the node cache before their turn comes."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from quickdraw_dist.data.stream.cache import ShardCache
from quickdraw_dist.data.stream.reader import SplitReader


class ShardsAhead:
    """Fetches in the order of need, some shards ahead of those that are being decoded.

    Lanes change shards at about the same time. Without this the store would stand idle while a
    shard of each lane is used up, and then be asked for one of each lane at once.
    """

    def __init__(
        self, reader: SplitReader, cache: ShardCache, shards: Iterable[int], fetchers: int,
        ahead: int,
    ) -> None:  # fmt: skip
        """`shards` as they are needed, repetitions allowed; `fetchers` at once, up to `ahead` more
        than have been reached, none where that is negative: a cache without room to spare."""
        self._reader, self._cache, self._ahead = reader, cache, max(0, ahead)
        self._order = list(dict.fromkeys(shards))
        self._place = {shard: place for place, shard in enumerate(self._order)}
        self._fetched: list[Future[object]] = []  # of the first shards in order
        self._pool = ThreadPoolExecutor(fetchers, thread_name_prefix="fetch")

    def reach(self, shard: int) -> None:
        """Blocks of this shard will be asked for next. Only the thread that plans calls this."""
        stop = self._place[shard] + 1 + self._ahead
        for coming in self._order[len(self._fetched) : stop]:
            url, entry = self._reader.url(coming), self._reader.shards[coming]
            self._fetched.append(self._pool.submit(self._cache.path, url, entry))

    def wait(self, shard: int) -> None:
        """Until a shard that was reached is there.

        Raises:
            CorruptError, FileNotFoundError, StorageError: it could not be fetched.
        """
        self._fetched[self._place[shard]].result()

    def close(self) -> None:
        """Let no more fetches begin, and wait for those that have."""
        self._pool.shutdown(wait=True, cancel_futures=True)
