"""Files and gs:// behave alike: whole or not at all, by range, listed, removed."""

from __future__ import annotations

import hashlib
import multiprocessing.connection
import os
import resource
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.telemetry import metrics as telemetry
from tests.support.gcs.local import Store

MIB = 1 << 20


def metric(name: str, **labels: str) -> float:
    return telemetry.REGISTRY.get_sample_value(f"quickdraw_{name}_total", labels) or 0.0


@pytest.fixture(params=["local", "gs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on disk, and one in a bucket: what holds for one must hold for the other."""
    if request.param == "local":
        return str(tmp_path)
    request.getfixturevalue("store")
    return "gs://bucket/some/prefix"


# -- addresses ---------------------------------------------------------------------------------


def test_addresses() -> None:
    """Joining is done everywhere; a lost slash or a doubled one is another object in a store."""
    assert storage.is_remote("gs://bucket/x")
    assert not storage.is_remote("/data/x")
    assert not storage.is_remote("relative/x:y")
    assert storage.join("gs://bucket/a/", "b", "c.tar") == "gs://bucket/a/b/c.tar"
    assert storage.join("gs://bucket", "b") == "gs://bucket/b"
    assert storage.join("/a/b/", "c") == "/a/b/c"
    assert storage.join("a", "b/c.tar") == "a/b/c.tar"


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_crc32c_goes_on(first: bytes, second: bytes) -> None:
    """Checksums of ranges are put together; a view must count like the bytes."""
    whole = storage.crc32c(first + second)
    assert storage.crc32c(memoryview(second), storage.crc32c(first)) == whole
    assert whole == int.from_bytes(google_crc32c.Checksum(first + second).digest(), "big")


def test_crc32c_is_the_standards() -> None:
    """The check value of CRC-32C: a manifest must mean the same to any other program."""
    assert storage.crc32c(b"123456789") == 0xE3069283


def test_a_placeholder_is_no_bucket() -> None:
    """What one forgot to edit is refused at once: no bucket has a name in capitals."""
    with pytest.raises(RefusedError, match=r"^gs://BUCKET/quickdraw: no bucket is called 'BUCKET'"):
        storage.read("gs://BUCKET/quickdraw")


def test_an_address_of_another_kind_is_refused() -> None:
    """A slip in DEST: said before a job of days, and not tried again."""
    with pytest.raises(RefusedError, match=r"^s3://b/x: .*begins with gs://"):
        storage.read("s3://b/x")


# -- reading and writing, on disk and in a store -------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000], ids=["0", "1", "1.2 MB"])
def test_what_is_published_is_read(place: str, data: bytes) -> None:
    """The base of everything: names with spaces and signs are the classes' own."""
    url = storage.join(place, "deep/er", "The Mona Lisa 100% ü.npy")
    assert not storage.exists(url)
    storage.publish(url, data)
    assert storage.exists(url)
    assert storage.read(url) == data
    assert storage.size(url) == len(data)
    storage.publish(url, data + b"more")
    assert storage.read(url) == data + b"more"


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, 4, b"0123"),
        (3, 3, b"345"),
        (0, 10, b"0123456789"),
        (9, 1, b"9"),
        (6, 100, b"6789"),
        (4, 0, b""),
        (0, 0, b""),
    ],
)
def test_ranges(place: str, start: int, length: int, expected: bytes) -> None:
    """Both ends of a range: one byte off is another drawing."""
    url = storage.join(place, "x")
    storage.publish(url, b"0123456789")
    assert storage.read_range(url, start, length) == expected
    assert bytes(storage.read_range_into(storage.Scratch(), url, start, length)) == expected


@pytest.mark.parametrize(("content", "start"), [(b"0123456789", 10), (b"0123456789", 99), (b"", 0)])
def test_a_range_beyond_the_end_is_empty(place: str, content: bytes, start: int) -> None:
    """'Fewer only where the object ends': what is cut short must be told from a store that fails,
    for a truncated file is an error of another kind, and not one to retry."""
    url = storage.join(place, "x")
    storage.publish(url, content)
    assert storage.read_range(url, start, 5) == b""
    assert bytes(storage.read_range_into(storage.Scratch(), url, start, 5)) == b""


def test_scratch_is_used_again_by_its_thread_only(tmp_path: Path) -> None:
    """Of any size in any order; another thread has memory of its own."""
    data = bytes(range(256)) * 1000
    (tmp_path / "x").write_bytes(data)
    url, scratch = str(tmp_path / "x"), storage.Scratch()
    first = storage.read_range_into(scratch, url, 200_001, 50_000)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(storage.read_range_into, scratch, url, 0, 50_000).result()
    assert bytes(first) == data[200_001:250_001]
    second = storage.read_range_into(scratch, url, 7, 100)
    assert bytes(second) == bytes(first[:100]) == data[7:107]
    assert bytes(storage.read_range_into(scratch, url, 1, 200_000)) == data[1:200_001]


def test_checksums_of_whole_objects(place: str) -> None:
    """Of a file they are computed, of an object the store's own are taken: one meaning."""
    url, data = storage.join(place, "cat.npy"), bytes(range(256)) * 100
    storage.publish(url, data)
    assert storage.own_crc32c(url) == storage.crc32c(data)
    assert storage.own_md5(url) == hashlib.md5(data).hexdigest()
    with pytest.raises(FileNotFoundError, match=r"dog\.npy"):
        storage.own_md5(storage.join(place, "dog.npy"))


def test_composed_objects_have_no_md5(store: Store) -> None:
    """As parallel uploads of gsutil leave them: no figure to compare with, and no error."""
    meta = {"name": "x", "componentCount": 2}
    store.server.gcs.store.insert("bucket", meta, memoryview(b"0123456789"), {})
    assert storage.own_md5("gs://bucket/x") is None
    assert storage.own_crc32c("gs://bucket/x") == storage.crc32c(b"0123456789")


def test_a_look_at_an_object_is_one_cheap_request(store: Store) -> None:
    """A listing costs what ten looks cost, and a source has 345 objects."""
    storage.publish("gs://bucket/x", b"0123456789")
    store.requests.clear()
    assert storage.size("gs://bucket/x") == 10
    assert store.requests == [("GET", "/storage/v1/b/bucket/o/x")]


def test_listings(place: str) -> None:
    """Sources and finished parts are found by listing: only this folder's, with their sizes."""
    for name in ("b.npy", "a.npy", "c.txt", "sub/d.npy", "sub/deep/e.npy", "other/f.txt"):
        storage.publish(storage.join(place, name), name.encode() * 2)
    assert list(storage.sizes(place, ".npy").items()) == [("a.npy", 10), ("b.npy", 10)]
    assert storage.sizes(place, ".tar") == {}
    assert storage.folders(place) == ["other", "sub"]
    assert storage.folders(storage.join(place, "sub")) == ["deep"]
    assert storage.folders(storage.join(place, "other")) == []
    # What another process adds must show: nothing may be kept from the listing before.
    storage.publish(storage.join(place, "new.npy"), b"")
    assert list(storage.sizes(place, ".npy")) == ["a.npy", "b.npy", "new.npy"]


def test_what_is_missing(place: str) -> None:
    """Callers tell 'not there' from 'the store failed' by the type of the error alone."""
    storage.publish(storage.join(place, "there"), b"x")
    missing = storage.join(place, "missing.tar")
    errors = metric("store_errors", kind="FileNotFoundError")
    for look in (
        storage.read,
        storage.size,
        lambda url: storage.read_range(url, 0, 5),
        lambda url: storage.sizes(url, ".tar"),
    ):
        with pytest.raises(FileNotFoundError, match=r"missing\.tar"):
            look(missing)
    assert not storage.exists(missing)
    assert storage.folders(missing) == []
    assert metric("store_errors", kind="FileNotFoundError") == errors


def test_removing_a_folder(place: str) -> None:
    """Old checkpoints go this way: all of one, nothing of its neighbours."""
    for name in ("step-1/a", "step-1/deep/b", "step-10/a"):
        storage.publish(storage.join(place, name), b"x")
    storage.remove_folder(storage.join(place, "step-1"))
    assert storage.folders(place) == ["step-10"]
    assert not storage.exists(storage.join(place, "step-1/deep/b"))
    assert storage.read(storage.join(place, "step-10/a")) == b"x"
    storage.remove_folder(storage.join(place, "step-1"))


# -- publishing ----------------------------------------------------------------------------------


def read_again_and_again(path: str, control: multiprocessing.connection.Connection) -> None:
    """Another process: reads until told to stop; answers with all that it saw."""
    seen = set()
    control.send("ready")
    while not control.poll():
        data = storage.read(path)
        seen.add((len(data), storage.crc32c(data)))
    control.send(seen)


def test_a_reader_never_sees_a_part(tmp_path: Path, processes: ForkServerContext) -> None:
    """A manifest or checkpoint that is read while it is written must be the old or the new one."""
    path = str(tmp_path / "manifest.json")
    versions = [bytes([letter]) * (MIB + letter) for letter in b"AB"]
    storage.publish(path, versions[0])
    mine, theirs = processes.Pipe()
    reader = processes.Process(target=read_again_and_again, args=(path, theirs))
    reader.start()
    theirs.close()
    assert mine.recv() == "ready"
    for number in range(60):
        storage.publish(path, versions[number % 2])
    mine.send("stop")
    seen = mine.recv()
    reader.join()
    assert reader.exitcode == 0
    assert seen <= {(len(data), storage.crc32c(data)) for data in versions}
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def publish_beyond_a_limit(path: str, results: multiprocessing.connection.Connection) -> None:
    """Another process whose files cannot grow beyond 1 MiB: a full disk, as the kernel tells it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
    try:
        storage.publish(path, bytes(3 * MIB))
    except OSError as error:
        results.send(type(error).__name__)
    else:
        results.send("published")


def test_a_failed_write_leaves_the_old_one(tmp_path: Path, processes: ForkServerContext) -> None:
    """Half a write, really refused by the kernel: the old content stays, nothing is left about."""
    path = tmp_path / "meta.json"
    storage.publish(str(path), b"old")
    mine, theirs = processes.Pipe()
    writer = processes.Process(target=publish_beyond_a_limit, args=(str(path), theirs))
    writer.start()
    theirs.close()
    assert mine.recv() == "OSError"
    writer.join()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_target_that_is_a_folder(tmp_path: Path) -> None:
    """The last step, the rename, may fail as well."""
    (tmp_path / "x" / "y").mkdir(parents=True)
    with pytest.raises(OSError):
        storage.publish(str(tmp_path / "x"), b"data")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_published_files_can_be_read_by_others(tmp_path: Path, umask: int, mode: int) -> None:
    """A shared dataset is read by users who did not write it; the umask decides, as always."""
    before = os.umask(umask)
    try:
        storage.publish(str(tmp_path / "x"), b"data")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode


def test_publishing_leaves_the_umask_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are written while other threads make files in the cache; their rights are no
    business of `publish`."""
    asked: list[int] = []
    umask = os.umask
    monkeypatch.setattr(os, "umask", lambda mask: (asked.append(mask), umask(mask))[1])
    storage.publish(str(tmp_path / "x"), b"data")
    assert 0 not in asked


def test_many_threads_publish_the_same_object(tmp_path: Path) -> None:
    """Workers may build the same group twice; one of them wins, whole."""
    path = tmp_path / "part.json"
    contents = [bytes([at]) * 100_000 for at in range(8)]
    threads = [
        threading.Thread(target=storage.publish, args=(str(path), data)) for data in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_room(tmp_path: Path) -> None:
    """Sharding for hours into a full disk helps nobody; a folder that is not there yet counts."""
    storage.check_room(str(tmp_path), 1, "free some")
    storage.check_room(str(tmp_path / "not" / "there"), 1, "free some")
    storage.check_room("gs://bucket/x", 10**21, "free some")
    with pytest.raises(RefusedError, match=r"there: needs about 1000000000\.0 GB.* free; do this"):
        storage.check_room(str(tmp_path / "not" / "there"), 10**18, "do this")
    assert not (tmp_path / "not").exists()
