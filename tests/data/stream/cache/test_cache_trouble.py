"""The node cache with an unusable folder, and with damaged bytes, stored or in transit."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import CorruptError, StorageError
from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.data.order.order import Order
from quickdraw_dist.data.shards.schema import ShardEntry
from quickdraw_dist.data.stream.cache import ShardCache
from tests.support.data.caching import (
    LARGE,
    URL,
    all_of,
    base,
    downloads,
    held,
    open_cached,
    read_all,
    shards_of,
)
from tests.support.data.datasets import Dataset
from tests.support.data.delivery import make_loader
from tests.support.gcs.local import Store
from tests.support.gcs.server import Request, Response

# -- a folder that does not work -----------------------------------------------------------------


@pytest.fixture
def unwritable(dataset: Dataset) -> Iterator[Path]:
    """A folder that this process may read but not write; root gives up its rights for it."""
    all_of(dataset)  # cached now: files that root made cannot be read below
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
                pytest.skip("root without the right to change its user")
        try:
            yield folder
        finally:
            os.seteuid(me)


def test_an_unwritable_folder(
    remote: Store, dataset: Dataset, unwritable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run continues from the store and warns once, naming the setting that helps."""
    with pytest.raises(PermissionError):
        (unwritable / "x").touch()
    assert read_all(open_cached(dataset, unwritable), threads=1) == all_of(dataset)
    said = capsys.readouterr().err
    assert said.count("streaming without it") == 1
    assert str(unwritable) in said
    assert "--stream.cache_folder" in said


def test_a_user_without_an_account(
    remote: Store,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A container's arbitrary uid: `~` has no meaning, so there is no cache; said once."""

    def unknown(_uid: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    for _ in range(2):
        assert read_all(open_cached(dataset, Path("~/.cache"))) == all_of(dataset)
    said = capfd.readouterr().err
    assert said.count("no home folder of this user is known; streaming without it") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk(
    remote: Store, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, number: int,
) -> None:  # fmt: skip
    """A full disk must not end a run: the third shard does not fit any more."""
    made, write = [], storage.replace_file

    def full(path: Path, data: bytes, durable: bool) -> None:
        made.append(path)
        if len(made) > 2:
            raise OSError(number, os.strerror(number))
        write(path, data, durable)

    monkeypatch.setattr(storage, "replace_file", full)
    assert read_all(open_cached(dataset, tmp_path), threads=1) == all_of(dataset)
    assert len(held(tmp_path)) == 2
    said = capsys.readouterr().err
    assert said.count(os.strerror(number)) == 1
    assert "--stream.cache_bytes" in said


def test_a_folder_that_is_a_file(remote: Store, dataset: Dataset, tmp_path: Path) -> None:
    """A typo in --stream.cache_folder must not end a run within an epoch."""
    (tmp_path / "cache").write_text("a file")
    assert read_all(open_cached(dataset, tmp_path / "cache")) == all_of(dataset)


def test_a_folder_deleted_in_the_middle_of_an_epoch(
    remote: Store, dataset: Dataset, tmp_path: Path
) -> None:
    """A disk is cleaned up while a run uses it: shards are fetched again, nothing is lost."""
    reader = open_cached(dataset, tmp_path / "cache")
    found: list[tuple[int, int]] = []
    for shard, blocks in enumerate(reader.block_counts):
        for block, count in enumerate(blocks):
            read = reader.read(shard, block)
            assert len(read.drawings) == count
            found += zip(read.labels.tolist(), read.rows.tolist(), strict=True)
            if block == 4:
                shutil.rmtree(tmp_path / "cache")
    assert found == all_of(dataset)
    assert downloads(remote, dataset) == [1 + (len(blocks) > 5) for blocks in reader.block_counts]


def test_a_folder_deleted_in_the_middle_of_a_write(
    remote: Store, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, while a shard is written there."""
    deleted, replace = [], Path.replace

    def delete_and_replace(temporary: Path, target: Path) -> Path:
        if not deleted:
            deleted.append(target)
            shutil.rmtree(tmp_path / "cache")
        return replace(temporary, target)

    monkeypatch.setattr(Path, "replace", delete_and_replace)
    assert read_all(open_cached(dataset, tmp_path / "cache"), threads=1) == all_of(dataset)
    assert deleted


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES])
def test_locks_that_fail(
    remote: Store, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], number: int,
) -> None:  # fmt: skip
    """NFS without lockd, FUSE, CIFS: streamed, and said once with the folder and the setting."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert read_all(open_cached(dataset, tmp_path), threads=1) == all_of(dataset)
    said = capsys.readouterr().err
    assert said.count(f"{tmp_path}/quickdraw-shards: no locks there: {os.strerror(number)}") == 1
    assert said.count("--stream.cache_folder") == 1


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
    assert read_all(open_cached(dataset, tmp_path / "cache"), threads=1) == all_of(dataset)
    assert deleted


def test_a_shard_evicted_before_it_is_opened(
    remote: Store, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank's eviction may come at any moment; the block is fetched again, not missed."""
    reader = open_cached(dataset, tmp_path)
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


Damage = Callable[[bytes], bytes]


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
    remote: Store, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    damage: Damage, threads: int,
) -> None:  # fmt: skip
    """Fetched again with a warning, and the right drawings delivered."""
    assert read_all(open_cached(dataset, tmp_path)) == all_of(dataset)
    shard = shards_of(dataset)[1]
    (path,) = tmp_path.rglob(base(shard))
    path.write_bytes(damage(path.read_bytes()))
    remote.requests.clear()
    assert read_all(open_cached(dataset, tmp_path), threads) == all_of(dataset)
    again = downloads(remote, dataset)
    assert 1 <= again[1] <= threads
    assert sum(again) == again[1]
    assert storage.crc32c(path.read_bytes()) == shard.crc32c
    assert capsys.readouterr().err.count(f"cache: {path}: not what the manifest says") == again[1]


@pytest.mark.parametrize("damage", [flipped, cut])
def test_a_shard_that_is_bad_in_the_store(
    remote: Store, dataset: Dataset, tmp_path: Path, damage: Damage
) -> None:
    """Fetched again once, then an error with both checksums; nothing of it stays in the cache."""
    shard = shards_of(dataset)[1]
    url = storage.join(URL, shard.name)
    wrong: bytes = damage(storage.read(url))
    storage.publish(url, wrong)
    remote.requests.clear()
    reader = open_cached(dataset, tmp_path)
    with pytest.raises(CorruptError) as raised:
        reader.read(1, 0)
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
        read_all(open_cached(dataset, tmp_path, limit=0))


@pytest.mark.parametrize("cached", [False, True])
def test_bits_flipped_on_the_way_are_counted(
    cached: bool,
    remote: Store,
    dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A range has no checksum on the way: its block's finds out. Repaired, counted and said, also
    where the cache's folder has failed."""
    reader = open_cached(dataset, Path("/dev/null/cache") if cached else tmp_path, LARGE * cached)
    turns = iter([True, False])

    def intercept(request: Request) -> Response | None:
        if "range" not in request.headers or not next(turns, False):
            return None
        reply = remote.server.gcs.answer(request)
        reply.body = flipped(bytes(reply.body))
        return reply

    remote.intercept = intercept
    before = checksum_retries()
    assert read_all(reader, threads=1) == all_of(dataset)
    assert checksum_retries() == before + 1
    assert "; try 2 of" in capsys.readouterr().err


def checksum_retries() -> float:
    name = "quickdraw_store_retries_total"
    return metrics.REGISTRY.get_sample_value(name, {"kind": "checksum"}) or 0.0


def test_a_shard_that_is_cut_in_the_store_without_a_cache(
    remote: Store, dataset: Dataset, tmp_path: Path
) -> None:
    """As above, for a shard whose last blocks are not there at all."""
    shard = shards_of(dataset)[1]
    url = storage.join(URL, shard.name)
    storage.publish(url, storage.read(url)[: shard.blocks[2].offset])
    with pytest.raises(CorruptError, match=url):
        read_all(open_cached(dataset, tmp_path, limit=0))


def test_a_transfer_that_went_wrong_once(remote: Store, dataset: Dataset, tmp_path: Path) -> None:
    """Bytes that changed in transit are fetched again and counted; the run continues."""
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
    retries = metrics.STORE_RETRIES.labels("checksum")._value.get()
    assert read_all(open_cached(dataset, tmp_path)) == all_of(dataset)
    assert downloads(remote, dataset)[1] == 2
    assert metrics.STORE_RETRIES.labels("checksum")._value.get() == retries + 1


def test_a_shard_that_is_gone(remote: Store, dataset: Dataset, tmp_path: Path) -> None:
    """Deleted during a run: the error names the shard, with and without a cache."""
    shard = shards_of(dataset)[1]
    remote.server.gcs.store.delete("bucket", f"data/{shard.name}", {})
    for limit in (LARGE, 0):
        with pytest.raises(CorruptError, match=f"{base(shard)}: missing"):
            read_all(open_cached(dataset, tmp_path, limit))


def test_a_store_that_stops_answering(remote: Store, dataset: Dataset, tmp_path: Path) -> None:
    """The loader's consumer gets the error after the retries, and no thread is left."""
    reader = open_cached(dataset, tmp_path)
    order = Order(reader.block_counts, global_batch=60, lanes=4, window_blocks=1, seed=1)
    loader = make_loader(reader, order, threads=3, more_batches=0, shards_ahead=0)
    batches = loader.epoch(0)
    next(batches)
    missing = [shard for shard in shards_of(dataset) if base(shard) not in held(tmp_path)]
    assert missing
    remote.intercept = lambda request: Response(503)
    with pytest.raises(StorageError, match=r"gs://bucket/data/train/.*503"):
        for _ in batches:
            pass
    assert not [t for t in threading.enumerate() if t.name.startswith(("loader", "decode"))]
