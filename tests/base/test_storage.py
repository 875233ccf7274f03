"""Objects in folders and in gs:// behave the same: read, listed, published, removed."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError
from tests.support.gcs.local import Store
from tests.support.metrics import metric

MIB = 1 << 20


@pytest.fixture(params=["local", "gs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on disk, and one in a bucket."""
    if request.param == "local":
        return str(tmp_path)
    request.getfixturevalue("store")
    return "gs://bucket/some/prefix"


# -- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed", ["data/x", "/a:b/c", "./gs:/x", "C:", "x/y:z", "2024-01-01T10:00", ""]
)
def test_a_path_stays_as_typed(typed: str) -> None:
    assert storage.address(typed) == typed


def test_an_address_has_one_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell expands ~ at the beginning of a word only; YAML and --output=~/run keep it."""
    monkeypatch.setenv("HOME", "/home/me")
    assert storage.address("~/runs/x") == "/home/me/runs/x"
    assert storage.address("gs://bucket/run") == storage.address("gcs://bucket/run")


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        ("gs:/bucket/run", "gs://bucket/run"),
        ("gs:bucket/run", "gs://bucket/run"),
        ("gs:///bucket/run", "gs://bucket/run"),
        ("GS://bucket/run", "gs://bucket/run"),
        (" gs://bucket/run\n", "gs://bucket/run"),
        ("https://storage.googleapis.com/bucket/run", "gs://bucket/run"),
        ("file:///data/run", "/data/run"),
        ("s3://bucket/run", "a path or a gs:// address"),
        ("hdfs:run", "./hdfs:run"),
        ("~nobody-of-this-name/run", "./~nobody-of-this-name/run"),
    ],
)
def test_an_address_that_would_become_a_folder_is_refused(typed: str, right: str) -> None:
    """`--output gs:/bucket/run` trained into a local folder gs:."""
    with pytest.raises(RefusedError) as caught:
        storage.address(typed)
    assert caught.value.subject == typed and caught.value.remedy.endswith(right)


def test_a_local_folder_is_not_in_a_store() -> None:
    assert storage.local_folder("~/cache") == "~/cache"
    for typed in ("gs://bucket/cache", "gs:/bucket/cache", "s3:cache"):
        with pytest.raises(RefusedError) as caught:
            storage.local_folder(typed)
        assert caught.value.subject == typed


def test_addresses() -> None:
    """A lost or doubled slash is another object in a store."""
    assert storage.is_remote("gs://bucket/x")
    assert not storage.is_remote("/data/x")
    assert not storage.is_remote("relative/x:y")
    assert storage.join("gs://bucket/a/", "b", "c.tar") == "gs://bucket/a/b/c.tar"
    assert storage.join("gs://bucket", "b") == "gs://bucket/b"
    assert storage.join("/a/b/", "c") == "/a/b/c"
    assert storage.join("a", "b/c.tar") == "a/b/c.tar"


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_crc32c_continues(first: bytes, second: bytes) -> None:
    """Checksums of ranges are combined; a memoryview counts like bytes."""
    whole = storage.crc32c(first + second)
    assert storage.crc32c(memoryview(second), storage.crc32c(first)) == whole
    assert whole == int.from_bytes(google_crc32c.Checksum(first + second).digest(), "big")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("gs://BUCKET/quickdraw", "no bucket is called 'BUCKET'"),  # a placeholder, not edited
        ("s3://b/x", "unknown kind of address"),
    ],
)
def test_addresses_that_are_refused(url: str, problem: str) -> None:
    """At once, and without a retry."""
    with pytest.raises(RefusedError) as caught:
        storage.read(url)
    assert caught.value.subject == url
    assert caught.value.problem.startswith(problem)


# -- reading and writing, on disk and in a store -------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000], ids=["0", "1", "1.2 MB"])
def test_what_is_published_is_read(folder: str, data: bytes) -> None:
    """Names may have spaces and other signs, as class names do."""
    url = storage.join(folder, "deep/er", "The Mona Lisa 100% ü.npy")
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
def test_ranges(folder: str, start: int, length: int, expected: bytes) -> None:
    """At both ends of a range: one byte off is another drawing."""
    url = storage.join(folder, "x")
    storage.publish(url, b"0123456789")
    assert storage.read_range(url, start, length) == expected
    assert bytes(storage.read_range_into(storage.Scratch(), url, start, length)) == expected


@pytest.mark.parametrize(("content", "start"), [(b"0123456789", 10), (b"0123456789", 99), (b"", 0)])
def test_a_range_beyond_the_end_is_empty(folder: str, content: bytes, start: int) -> None:
    """A truncated file is a CorruptError, not a request to retry."""
    url = storage.join(folder, "x")
    storage.publish(url, content)
    assert storage.read_range(url, start, 5) == b""
    assert bytes(storage.read_range_into(storage.Scratch(), url, start, 5)) == b""


def test_scratch_is_shared_by_reads_of_one_thread(tmp_path: Path) -> None:
    """Of any size in any order; another thread has a buffer of its own."""
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


def test_checksums_of_whole_objects(folder: str) -> None:
    """Computed from a file, or the store's: the same value."""
    url, data = storage.join(folder, "cat.npy"), bytes(range(256)) * 100
    storage.publish(url, data)
    assert storage.object_crc32c(url) == storage.crc32c(data)
    assert storage.object_md5(url) == hashlib.md5(data).hexdigest()
    with pytest.raises(FileNotFoundError, match=r"dog\.npy"):
        storage.object_md5(storage.join(folder, "dog.npy"))


def test_composed_objects_have_no_md5(store: Store) -> None:
    """As parallel uploads of gsutil leave them: nothing to compare with, and no error."""
    meta = {"name": "x", "componentCount": 2}
    store.server.gcs.store.insert("bucket", meta, memoryview(b"0123456789"), {})
    assert storage.object_md5("gs://bucket/x") is None
    assert storage.object_crc32c("gs://bucket/x") == storage.crc32c(b"0123456789")


def test_size_is_one_cheap_request(store: Store) -> None:
    """A listing costs ten times as much, and a source has 345 objects."""
    storage.publish("gs://bucket/x", b"0123456789")
    store.requests.clear()
    assert storage.size("gs://bucket/x") == 10
    assert store.requests == [("GET", "/storage/v1/b/bucket/o/x")]


def test_listings(folder: str) -> None:
    """Only what lies directly in the folder, with sizes."""
    for name in ("b.npy", "a.npy", "c.txt", "sub/d.npy", "sub/deep/e.npy", "other/f.txt"):
        storage.publish(storage.join(folder, name), name.encode() * 2)
    assert list(storage.sizes(folder, ".npy").items()) == [("a.npy", 10), ("b.npy", 10)]
    assert storage.sizes(folder, ".tar") == {}
    assert storage.folders(folder) == ["other", "sub"]
    assert storage.folders(storage.join(folder, "sub")) == ["deep"]
    assert storage.folders(storage.join(folder, "other")) == []
    # Nothing may be cached: another process may have added an object.
    storage.publish(storage.join(folder, "new.npy"), b"")
    assert list(storage.sizes(folder, ".npy")) == ["a.npy", "b.npy", "new.npy"]


def test_listings_have_no_strays(folder: str) -> None:
    """Hidden files are left by systems and editors; the case of a suffix is a system's habit."""
    for name in ("a.tar", "B.TAR", "._a.tar", ".tar", "a.tar~"):
        storage.publish(storage.join(folder, name), b"x")
    assert storage.sizes(folder, ".tar") == {"B.TAR": 1, "a.tar": 1}


def test_a_listing_names_a_broken_link(tmp_path: Path) -> None:
    """One dangling link does not make its folder a missing one."""
    (tmp_path / "a.tar").symlink_to("nowhere.tar")
    (tmp_path / ".#b.tar").symlink_to("emacs@host")
    with pytest.raises(RefusedError, match=r"a\.tar: a link to nowhere\.tar that leads nowhere"):
        storage.sizes(str(tmp_path), ".tar")


def test_what_is_missing(folder: str) -> None:
    """Callers tell a missing object from a failing store by the type of the error alone."""
    storage.publish(storage.join(folder, "there"), b"x")
    missing = storage.join(folder, "missing.tar")
    errors = metric("store_errors", kind="FileNotFoundError")
    for call in (
        storage.read,
        storage.size,
        lambda url: storage.read_range(url, 0, 5),
        lambda url: storage.sizes(url, ".tar"),
    ):
        with pytest.raises(FileNotFoundError, match=r"missing\.tar"):
            call(missing)
    assert not storage.exists(missing)
    assert storage.folders(missing) == []
    assert metric("store_errors", kind="FileNotFoundError") == errors


def test_removing_a_folder(folder: str) -> None:
    """Old checkpoints are removed so: all of one, nothing of its neighbours."""
    for name in ("step-1/a", "step-1/deep/b", "step-10/a"):
        storage.publish(storage.join(folder, name), b"x")
    storage.remove_folder(storage.join(folder, "step-1"))
    assert storage.folders(folder) == ["step-10"]
    assert not storage.exists(storage.join(folder, "step-1/deep/b"))
    assert storage.read(storage.join(folder, "step-10/a")) == b"x"
    storage.remove_folder(storage.join(folder, "step-1"))


def test_free_space(tmp_path: Path) -> None:
    """Before hours of sharding into a full disk; the folder need not exist yet."""
    folder = str(tmp_path / "not" / "there")
    storage.check_free_space(str(tmp_path), 1, "Free some")
    storage.check_free_space(folder, 1, "Free some")
    storage.check_free_space("gs://bucket/x", 10**21, "Free some")
    with pytest.raises(RefusedError) as caught:
        storage.check_free_space(folder, 10**18, "Free some")
    error = caught.value
    assert (error.subject, error.needed_bytes, error.remedy) == (folder, 10**18, "Free some")
    assert 0 < error.free_bytes < 10**18
    assert not (tmp_path / "not").exists()
