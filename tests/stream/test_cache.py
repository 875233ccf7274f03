"""The node cache, between a real store on this machine and real readers in real processes."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest

from quickdraw_dist import storage, telemetry
from quickdraw_dist.config import Stream
from quickdraw_dist.errors import CorruptError
from quickdraw_dist.shards import manifest
from quickdraw_dist.shards.manifest import ShardEntry
from quickdraw_dist.storage import StorageError
from quickdraw_dist.stream.cache import ShardCache
from quickdraw_dist.stream.loader import TrainLoader, evaluation_batches
from quickdraw_dist.stream.order import Order, Piece
from quickdraw_dist.stream.reader import SplitReader
from tests.conftest import Dataset, DatasetMaker, Store, use_store
from tests.gcs_server import Request, Response

URL = "gs://bucket/data"
LARGE = 10**9


@pytest.fixture
def remote(store: Store, dataset: Dataset) -> Store:
    """A store with the small dataset at `URL`; requests are counted from here on."""
    store.upload(dataset.folder, URL)
    store.requests.clear()
    return store


def open_reader(dataset: Dataset, cache: Path, limit: int = LARGE) -> SplitReader:
    stream = Stream(cache_folder=str(cache), cache_bytes=limit)
    return SplitReader(URL, dataset.manifest, "train", stream)


def read_all(reader: SplitReader, threads: int = 2) -> list[tuple[int, int]]:
    """The identities of the whole split in its order."""
    found: list[tuple[int, int]] = []
    for batch in evaluation_batches(reader, rank=0, world_size=1, batch=512, threads=threads):
        found += zip(batch.labels.tolist(), batch.rows.tolist(), strict=True)
    return found


def all_of(dataset: Dataset) -> list[tuple[int, int]]:
    return list(dataset.stored("train").values())


def shards_of(dataset: Dataset) -> tuple[ShardEntry, ...]:
    return dataset.manifest.splits["train"]


def base(shard: ShardEntry) -> str:
    return Path(shard.name).name


def downloads(store: Store, dataset: Dataset) -> list[int]:
    """Requests for bytes of every training shard."""
    return [store.media_reads(base(shard)) for shard in shards_of(dataset)]


def held(cache: Path) -> dict[str, int]:
    """Every byte below a cache folder: names of shards (or of what else lies there) and sizes."""
    files = (path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.name: path.stat().st_size for path in files}


def metric(name: str) -> float:
    return telemetry.REGISTRY.get_sample_value(f"quickdraw_{name}") or 0.0


# -- fetched once --------------------------------------------------------------------------------


def test_each_shard_is_fetched_once_for_all_epochs(
    remote: Store, dataset: Dataset, tmp_path: Path
) -> None:
    """A store is paid by the request and the byte: a second epoch must cost nothing."""
    reader = open_reader(dataset, tmp_path)
    order = Order(reader.block_counts, global_batch=100, lanes=20, window_blocks=2, seed=1)
    loader = TrainLoader(reader, order, rank=0, world_size=1, threads=4, prefetch=2, pin=False)
    stored = dataset.stored("train")
    misses = metric("cache_misses_total")
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            first = batch.step * 100
            assert list(zip(batch.labels.tolist(), batch.rows.tolist(), strict=True)) == [
                stored[order.locate(epoch, position)] for position in range(first, first + 100)
            ]
            pixels = dataset.pixels(batch.labels.numpy(), batch.rows)
            assert np.array_equal(batch.drawings.numpy(), pixels)
    assert downloads(remote, dataset) == [1] * len(shards_of(dataset))
    assert metric("cache_misses_total") == misses + len(shards_of(dataset))
    # Another run on the node finds them there.
    assert read_all(open_reader(dataset, tmp_path)) == all_of(dataset)
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
        assert read_all(open_reader(dataset, tmp_path / "cache")) == all_of(dataset)
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
        assert read_all(open_reader(dataset, tmp_path / "cache")) == all_of(dataset)
        reader = SplitReader("gs://bucket/copy", copy.manifest, "train", stream)
        assert read_all(reader) == all_of(dataset)
    assert downloads(remote, dataset) == [2] * len(shards_of(dataset))  # one for each copy


# -- the limit -----------------------------------------------------------------------------------


def age(cache: Path, names: list[str]) -> None:
    """As if the shards had last been used hours ago, in this order."""
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
    """The limit is the folder's: last week's dataset must make room for today's."""
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
    """No cache, one too small for any shard, and ones that throw out what comes back at once."""
    limit = int(shards * max(shard.bytes for shard in shards_of(dataset)))
    reader = open_reader(dataset, tmp_path / "cache", limit)
    order = Order(reader.block_counts, global_batch=160, lanes=8, window_blocks=2, seed=1)
    loader = TrainLoader(reader, order, rank=0, world_size=1, threads=4, prefetch=2, pin=False)
    stored, seen = dataset.stored("train"), 0
    for batch in loader.epoch(0):
        for identity in zip(batch.labels.tolist(), batch.rows.tolist(), strict=True):
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
    both, make = threading.Barrier(2), tempfile.mkstemp

    def together(*args: object, **kwargs: object) -> tuple[int, str]:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(1)  # a cache that lets one write after the other breaks it, and is right
        return make(*args, **kwargs)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(tempfile, "mkstemp", together)

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
    """Preempted nodes are killed in the middle of fetches; their half shards must not fill it."""
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


# -- a folder that does not work -----------------------------------------------------------------


@pytest.fixture
def unwritable() -> Iterator[Path]:
    """A folder that this process may read but not write; root gives up its rights for it."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home, "cache")
        folder.mkdir()
        folder.chmod(0o555)
        Path(home).chmod(0o755)
        me = os.geteuid()
        if me == 0:
            try:
                os.seteuid(65534)
            except OSError:
                pytest.skip("root that may not become somebody else")
        try:
            yield folder
        finally:
            os.seteuid(me)


def test_an_unwritable_folder(
    remote: Store, dataset: Dataset, unwritable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on from the store and says so once, with the setting that would help."""
    with pytest.raises(PermissionError):
        (unwritable / "x").touch()
    assert read_all(open_reader(dataset, unwritable), threads=1) == all_of(dataset)
    said = capsys.readouterr().err
    assert said.count("streaming without it") == 1
    assert str(unwritable) in said
    assert "--stream.cache_folder" in said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk(
    remote: Store, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, number: int,
) -> None:  # fmt: skip
    """A full disk must not end a run: the third shard does not fit any more."""
    made, make = [], tempfile.mkstemp

    def full(*args: object, **kwargs: object) -> tuple[int, str]:
        made.append(args)
        if len(made) > 2:
            raise OSError(number, os.strerror(number))
        return make(*args, **kwargs)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(tempfile, "mkstemp", full)
    assert read_all(open_reader(dataset, tmp_path), threads=1) == all_of(dataset)
    assert len(held(tmp_path)) == 2
    said = capsys.readouterr().err
    assert said.count(os.strerror(number)) == 1
    assert "--stream.cache_bytes" in said


def test_a_folder_that_is_a_file(remote: Store, dataset: Dataset, tmp_path: Path) -> None:
    """A slip in --stream.cache_folder is no reason for a traceback in the middle of an epoch."""
    (tmp_path / "cache").write_text("a file")
    assert read_all(open_reader(dataset, tmp_path / "cache")) == all_of(dataset)


def test_a_folder_deleted_in_the_middle_of_an_epoch(
    remote: Store, dataset: Dataset, tmp_path: Path
) -> None:
    """Somebody cleans up a disk while a run is using it: fetched again, nothing lost."""
    reader = open_reader(dataset, tmp_path / "cache")
    found: list[tuple[int, int]] = []
    for shard, blocks in enumerate(reader.block_counts):
        for block, count in enumerate(blocks):
            pixels, labels = np.empty((count, 28, 28), np.uint8), np.empty(count, np.uint16)
            rows = np.empty(count, np.uint32)
            reader.read(Piece(shard, block, 0, count), pixels, labels, rows)
            found += zip(labels.tolist(), rows.tolist(), strict=True)
            if block == 4:
                shutil.rmtree(tmp_path / "cache")
    assert found == all_of(dataset)
    assert downloads(remote, dataset) == [1 + (len(blocks) > 5) for blocks in reader.block_counts]


def test_a_folder_deleted_in_the_middle_of_a_write(
    remote: Store, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, while a shard is written there."""
    deleted, make = [], tempfile.mkstemp

    def make_and_delete(*args: object, **kwargs: object) -> tuple[int, str]:
        made: tuple[int, str] = make(*args, **kwargs)  # type: ignore[call-overload]
        if not deleted:
            deleted.append(made)
            shutil.rmtree(tmp_path / "cache")
        return made

    monkeypatch.setattr(tempfile, "mkstemp", make_and_delete)
    assert read_all(open_reader(dataset, tmp_path / "cache"), threads=1) == all_of(dataset)
    assert deleted


def test_a_folder_deleted_in_the_middle_of_a_fetch(
    remote: Store, dataset: Dataset, tmp_path: Path
) -> None:
    """As above, at the worst moment: most of the time of a fetch is the download."""
    deleted = []

    def intercept(request: Request) -> None:
        if request.params.get("alt") == "media" and not deleted:
            deleted.append(request.path)
            shutil.rmtree(tmp_path / "cache")

    remote.intercept = intercept
    assert read_all(open_reader(dataset, tmp_path / "cache"), threads=1) == all_of(dataset)
    assert deleted


def test_a_shard_evicted_between_look_and_opening(
    remote: Store, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank's eviction may come at any moment; the block is fetched again, not missed."""
    reader = open_reader(dataset, tmp_path)
    path, evicted = ShardCache.path, []

    def path_then_evicted(self: ShardCache, url: str, shard: ShardEntry) -> Path | None:
        found = path(self, url, shard)
        if found is not None and len(evicted) < 3:
            evicted.append(found)
            found.unlink()
        return found

    monkeypatch.setattr(ShardCache, "path", path_then_evicted)
    assert read_all(reader, threads=1) == all_of(dataset)
    assert len(evicted) == 3


# -- wrong bytes ---------------------------------------------------------------------------------


def flipped(data: bytes) -> bytes:
    """One bit, in the middle of some block's pixels."""
    wrong = bytearray(data)
    wrong[len(wrong) // 2] ^= 4
    return bytes(wrong)


def cut(data: bytes) -> bytes:
    """The first half."""
    return data[: len(data) // 2]


def zeroed(data: bytes) -> bytes:
    """Zeros of the same length: a disk that lost power."""
    return bytes(len(data))


@pytest.mark.parametrize("damage", [flipped, cut, zeroed])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_shard_that_went_bad_in_the_cache(
    remote: Store, dataset: Dataset, tmp_path: Path, damage: object, threads: int
) -> None:
    """Scratch disks are the worst disks: fetched again, and the right drawings delivered."""
    assert read_all(open_reader(dataset, tmp_path)) == all_of(dataset)
    shard = shards_of(dataset)[1]
    (path,) = tmp_path.rglob(base(shard))
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    remote.requests.clear()
    assert read_all(open_reader(dataset, tmp_path), threads) == all_of(dataset)
    again = downloads(remote, dataset)
    assert 1 <= again[1] <= threads
    assert sum(again) == again[1]
    assert storage.crc32c(path.read_bytes()) == shard.crc32c


@pytest.mark.parametrize("damage", [flipped, cut])
def test_a_shard_that_is_bad_in_the_store(
    remote: Store, dataset: Dataset, tmp_path: Path, damage: object
) -> None:
    """Fetched again once, then an error with both checksums; nothing of it stays in the cache."""
    shard = shards_of(dataset)[1]
    url = storage.join(URL, shard.name)
    wrong: bytes = damage(storage.read(url))  # type: ignore[operator]
    storage.publish(url, wrong)
    remote.requests.clear()
    count = shard.blocks[0].drawings
    pixels, labels = np.empty((count, 28, 28), np.uint8), np.empty(count, np.uint16)
    reader = open_reader(dataset, tmp_path)
    with pytest.raises(CorruptError) as raised:
        reader.read(Piece(1, 0, 0, count), pixels, labels, np.empty(count, np.uint32))
    message = str(raised.value)
    assert url in message
    assert f"{storage.crc32c(wrong):08x}" in message
    assert f"{shard.crc32c:08x}" in message
    assert f"{shard.bytes:,}" in message
    assert downloads(remote, dataset)[1] == 2
    assert base(shard) not in held(tmp_path)


def test_a_shard_that_is_bad_in_the_store_without_a_cache(
    remote: Store, dataset: Dataset, tmp_path: Path
) -> None:
    """Read by range, the checksum of every block still stands between it and the training."""
    shard = shards_of(dataset)[1]
    url = storage.join(URL, shard.name)
    storage.publish(url, flipped(storage.read(url)))
    with pytest.raises(CorruptError, match=url):
        read_all(open_reader(dataset, tmp_path, limit=0))


def test_a_shard_that_is_cut_in_the_store_without_a_cache(
    remote: Store, dataset: Dataset, tmp_path: Path
) -> None:
    """As above, for a shard whose last blocks are not there at all."""
    shard = shards_of(dataset)[1]
    url = storage.join(URL, shard.name)
    storage.publish(url, storage.read(url)[: shard.blocks[2].offset])
    with pytest.raises(CorruptError, match=url):
        read_all(open_reader(dataset, tmp_path, limit=0))


def test_a_transfer_that_went_wrong_once(remote: Store, dataset: Dataset, tmp_path: Path) -> None:
    """Bytes that changed on the way are fetched again and counted; the run goes on."""
    shard = shards_of(dataset)[1]
    right = storage.read(storage.join(URL, shard.name))
    remote.requests.clear()
    wrong = []

    def intercept(request: Request) -> Response | None:
        if base(shard) in request.path and not wrong:
            wrong.append(request.path)
            return Response(200, body=flipped(right))
        return None

    remote.intercept = intercept
    retries = telemetry.STORE_RETRIES.labels("checksum")._value.get()
    assert read_all(open_reader(dataset, tmp_path)) == all_of(dataset)
    assert downloads(remote, dataset)[1] == 2
    assert telemetry.STORE_RETRIES.labels("checksum")._value.get() == retries + 1


def test_a_shard_that_is_gone(remote: Store, dataset: Dataset, tmp_path: Path) -> None:
    """Deleted in the middle of a run: the name of what is missing, with and without a cache."""
    shard = shards_of(dataset)[1]
    storage.remove_folder(storage.join(URL, shard.name))
    for limit in (LARGE, 0):
        with pytest.raises(CorruptError, match=f"{base(shard)}: missing"):
            read_all(open_reader(dataset, tmp_path, limit))


def test_a_store_that_stops_answering(remote: Store, dataset: Dataset, tmp_path: Path) -> None:
    """The loader's consumer hears of it, after the retries, and no thread is left."""
    reader = open_reader(dataset, tmp_path)
    order = Order(reader.block_counts, global_batch=60, lanes=4, window_blocks=1, seed=1)
    loader = TrainLoader(reader, order, rank=0, world_size=1, threads=3, prefetch=1, pin=False)
    batches = loader.epoch(0)
    next(batches)
    missing = [shard for shard in shards_of(dataset) if base(shard) not in held(tmp_path)]
    assert missing
    remote.intercept = lambda request: Response(503)
    with pytest.raises(StorageError, match=r"gs://bucket/data/train/.*503"):
        for _ in batches:
            pass
    assert not [t for t in threading.enumerate() if t.name.startswith(("loader", "decode"))]


def test_other_files_in_the_folder_are_left_alone(
    remote: Store, dataset: Dataset, tmp_path: Path
) -> None:
    """--stream.cache_folder /scratch must never cost anybody a backup."""
    mine = [tmp_path / "backup.tar", tmp_path / "deep" / "more.tar", tmp_path / ".photos.tar.gz"]
    (tmp_path / "deep").mkdir()
    for path in mine:
        path.write_bytes(bytes(100_000))
    shards = shards_of(dataset)[:3]
    cache = ShardCache(str(tmp_path), dataset.manifest.digest, shards[0].bytes + 10_000)
    for shard in shards:
        cache.path(storage.join(URL, shard.name), shard)
    assert all(path.exists() for path in mine)
