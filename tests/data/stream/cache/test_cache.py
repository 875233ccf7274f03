"""The node cache, between a real store on this machine and real readers in real processes."""

from __future__ import annotations

import contextlib
import os
import threading
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest

from quickdraw_dist.base import storage
from quickdraw_dist.base.settings import Stream
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.shards import manifest
from quickdraw_dist.data.shards.schema import ShardEntry
from quickdraw_dist.data.stream.cache import ShardCache
from quickdraw_dist.data.stream.reader import SplitReader
from tests.support.data.caching import (
    URL,
    all_of,
    base,
    downloads,
    held,
    metric,
    open_cached,
    read_all,
    shards_of,
)
from tests.support.data.datasets import Dataset, DatasetMaker
from tests.support.data.delivery import make_loader, pairs
from tests.support.gcs.local import Store, use_store

# -- fetched once --------------------------------------------------------------------------------


def test_each_shard_is_fetched_once_for_all_epochs(
    remote: Store, dataset: Dataset, tmp_path: Path
) -> None:
    """Stores bill requests and bytes: a second epoch must cost nothing."""
    reader = open_cached(dataset, tmp_path)
    order = Order(reader.block_counts, global_batch=100, lanes=20, window_blocks=2, seed=1)
    loader = make_loader(reader, order, threads=4)
    stored = dataset.stored("train")
    misses = metric("cache_misses_total")
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            first = batch.step * 100
            assert pairs(batch) == [
                stored[order.locate(epoch, position)] for position in range(first, first + 100)
            ]
            pixels = dataset.pixels(batch.labels.numpy(), batch.rows)
            assert np.array_equal(batch.drawings.numpy(), pixels)
    assert downloads(remote, dataset) == [1] * len(shards_of(dataset))
    assert metric("cache_misses_total") == misses + len(shards_of(dataset))
    # Another run on the node uses them.
    assert read_all(open_cached(dataset, tmp_path)) == all_of(dataset)
    assert downloads(remote, dataset) == [1] * len(shards_of(dataset))


def read_in_a_process(url: str, cache: str, together: Barrier, results: str, rank: int) -> None:
    """A rank of a node: its own process, the node's cache folder."""
    use_store(url)
    dataset = manifest.read(URL)
    reader = SplitReader(URL, dataset, "train", Stream(cache_folder=cache))
    together.wait()
    identities = read_all(reader, threads=3)
    Path(results, str(rank)).write_text(repr(identities))


def test_two_processes_fetch_each_shard_once(
    remote: Store, dataset: Dataset, processes: ForkServerContext, tmp_path: Path
) -> None:
    """Eight ranks on a node must not fetch the dataset eight times."""
    (tmp_path / "results").mkdir()
    cache = tmp_path / "cache"
    together = processes.Barrier(2)
    ranks = [
        processes.Process(
            target=read_in_a_process,
            args=(remote.server.url, str(cache), together, str(tmp_path / "results"), rank),
        )
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
    for rank in range(2):
        assert (tmp_path / "results" / str(rank)).read_text() == repr(all_of(dataset))
    assert downloads(remote, dataset) == [1] * len(shards_of(dataset))
    assert held(cache) == {base(shard): shard.bytes for shard in shards_of(dataset)}


def test_two_datasets_never_meet(
    remote: Store, dataset: Dataset, make_dataset: DatasetMaker, tmp_path: Path
) -> None:
    """Shards of all datasets have the same names; the cache folder is the same by default."""
    other = make_dataset(seed=99)
    assert other.manifest.digest != dataset.manifest.digest
    remote.upload(other.folder, "gs://bucket/other")
    stream = Stream(cache_folder=str(tmp_path / "cache"))
    for _ in range(2):
        assert read_all(open_cached(dataset, tmp_path / "cache")) == all_of(dataset)
        reader = SplitReader("gs://bucket/other", other.manifest, "train", stream)
        assert read_all(reader) == all_of(other)
    assert downloads(remote, dataset) == [2] * len(shards_of(dataset))  # one for each dataset


def test_two_copies_of_a_dataset_do_not_fight(
    remote: Store, dataset: Dataset, make_dataset: DatasetMaker, tmp_path: Path
) -> None:
    """A gzip and an uncompressed copy are one dataset by digest; runs on both share a node."""
    copy = make_dataset(compression="none")
    assert copy.manifest.digest == dataset.manifest.digest
    remote.upload(copy.folder, "gs://bucket/copy")
    stream = Stream(cache_folder=str(tmp_path / "cache"))
    for _ in range(3):
        assert read_all(open_cached(dataset, tmp_path / "cache")) == all_of(dataset)
        reader = SplitReader("gs://bucket/copy", copy.manifest, "train", stream)
        assert read_all(reader) == all_of(dataset)
    assert downloads(remote, dataset) == [2] * len(shards_of(dataset))  # one for each copy


# -- the limit -----------------------------------------------------------------------------------


def age(cache: Path, names: list[str]) -> None:
    """Make the shards look last used hours ago, in this order."""
    for number, name in enumerate(names):
        (path,) = cache.rglob(name)
        os.utime(path, (1e9 + number * 3600, 1e9 + number * 3600))


def test_the_least_recently_used_goes_first(
    remote: Store, dataset: Dataset, tmp_path: Path
) -> None:
    """Within the limit, and never what is in use: by use, not by age or name."""
    shards = shards_of(dataset)
    assert len(shards) >= 5
    limit = shards[0].bytes + shards[1].bytes + shards[2].bytes
    cache = ShardCache(str(tmp_path), dataset.manifest.digest, limit)

    def use(number: int) -> None:
        path = cache.path(storage.join(URL, shards[number].name), shards[number])
        assert path is not None
        assert path.stat().st_size == shards[number].bytes
        assert storage.crc32c(path.read_bytes()) == shards[number].crc32c

    for number in (0, 1, 2):
        use(number)
    assert set(held(tmp_path)) == {base(shards[at]) for at in (0, 1, 2)}
    age(tmp_path, [base(shards[at]) for at in (0, 1, 2)])
    use(0)  # a hit: from now on it is the newest
    smallest = min(shards[3:], key=lambda shard: shard.bytes)
    use(shards.index(smallest))
    assert base(shards[1]) not in held(tmp_path)
    assert base(shards[0]) in held(tmp_path)
    assert base(smallest) in held(tmp_path)
    assert sum(held(tmp_path).values()) <= limit
    assert metric("cache_bytes") == sum(held(tmp_path).values())
    use(1)
    assert downloads(remote, dataset)[:2] == [1, 2]
    assert sum(held(tmp_path).values()) <= limit


def test_other_datasets_count_and_go_too(remote: Store, dataset: Dataset, tmp_path: Path) -> None:
    """The limit is the folder's: an older dataset is evicted for a newer one."""
    old = (
        tmp_path / "quickdraw-shards" / "0123456789abcdef" / "train" / "quickdraw-train-000000.tar"
    )
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(50_000))
    os.utime(old, (1e9, 1e9))
    shard = shards_of(dataset)[0]
    cache = ShardCache(str(tmp_path), dataset.manifest.digest, shard.bytes + 49_999)
    assert cache.path(storage.join(URL, shard.name), shard) is not None
    assert not old.exists()


@pytest.mark.parametrize("shards", [0.0, 0.5, 1.0, 2.5])
def test_any_limit_gives_the_right_drawings(
    remote: Store, dataset: Dataset, tmp_path: Path, shards: float
) -> None:
    """No cache, one too small for any shard, and ones that evict what is read next."""
    limit = int(shards * max(shard.bytes for shard in shards_of(dataset)))
    reader = open_cached(dataset, tmp_path / "cache", limit)
    order = Order(reader.block_counts, global_batch=160, lanes=8, window_blocks=2, seed=1)
    loader = make_loader(reader, order, threads=4)
    stored, seen = dataset.stored("train"), 0
    for batch in loader.epoch(0):
        for identity in pairs(batch):
            assert identity == stored[order.locate(0, seen)]
            seen += 1
    assert seen == order.steps * 160
    if shards < 1:
        assert not (tmp_path / "cache").exists()


def test_the_limit_holds_when_two_fetch_at_once(
    remote: Store, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache disk of exactly the limit's size would be full."""
    shards = shards_of(dataset)[:2]
    limit = max(shard.bytes for shard in shards) + 100
    both, write = threading.Barrier(2), storage.replace_file

    def together(path: Path, data: bytes, durable: bool) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(1)  # a cache with one writer at a time breaks the barrier, as it should
        write(path, data, durable)

    monkeypatch.setattr(storage, "replace_file", together)

    def use(shard: ShardEntry) -> None:
        cache = ShardCache(str(tmp_path), dataset.manifest.digest, limit)
        cache.path(storage.join(URL, shard.name), shard)

    threads = [threading.Thread(target=use, args=(shard,)) for shard in shards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(held(tmp_path).values()) <= limit


def test_leftovers_of_a_killed_process_go(remote: Store, dataset: Dataset, tmp_path: Path) -> None:
    """A preempted node leaves unfinished files of its fetches, which must not fill the cache."""
    shard = shards_of(dataset)[0]
    cache = ShardCache(str(tmp_path), dataset.manifest.digest, shard.bytes + 1000)
    assert cache.path(storage.join(URL, shard.name), shard) is not None
    (path,) = tmp_path.rglob("*.tar")
    leftover = path.with_name(f".{path.name}.abcd1234")
    path.rename(leftover)
    os.utime(leftover, (1e9, 1e9))
    other = shards_of(dataset)[1]
    if other.bytes > shard.bytes + 1000:
        pytest.fail("the fixture's shards changed: the second one has to fit the limit")
    assert cache.path(storage.join(URL, other.name), other) is not None
    assert sum(held(tmp_path).values()) <= shard.bytes + 1000


def test_other_files_in_the_folder_are_left_alone(
    remote: Store, dataset: Dataset, tmp_path: Path
) -> None:
    """--stream.cache_folder /scratch must never delete other files."""
    mine = [tmp_path / "backup.tar", tmp_path / "deep" / "more.tar", tmp_path / ".photos.tar.gz"]
    (tmp_path / "deep").mkdir()
    for path in mine:
        path.write_bytes(bytes(100_000))
    shards = shards_of(dataset)[:3]
    cache = ShardCache(str(tmp_path), dataset.manifest.digest, shards[0].bytes + 10_000)
    for shard in shards:
        cache.path(storage.join(URL, shard.name), shard)
    assert all(path.exists() for path in mine)


def test_a_cache_too_small_for_all_shards(
    remote: Store, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says how many shards there are, not how many lanes could read one each."""
    count = len(shards_of(dataset))
    reader = SplitReader(URL, dataset.manifest, "train", Stream(cache_bytes=1), 64)
    assert reader.cache is None
    assert count < 64
    assert f"does not hold the {count} shards that this node reads" in capsys.readouterr().err
