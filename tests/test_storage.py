"""Files and gs:// behave alike: whole or not at all, by range, with a bounded number of tries."""

from __future__ import annotations

import multiprocessing.connection
import os
import resource
import stat
import threading
from multiprocessing.context import ForkServerContext
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist import storage, telemetry
from quickdraw_dist.errors import RefusedError
from quickdraw_dist.storage import StorageError
from tests.conftest import Store
from tests.gcs_server import Request, Response

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


@pytest.mark.parametrize(("content", "start"), [(b"0123456789", 10), (b"0123456789", 99), (b"", 0)])
def test_a_range_beyond_the_end_is_empty(place: str, content: bytes, start: int) -> None:
    """'Fewer only where the object ends': what is cut short must be told from a store that fails,
    for a truncated file is an error of another kind, and not one to retry."""
    url = storage.join(place, "x")
    storage.publish(url, content)
    assert storage.read_range(url, start, 5) == b""


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


# -- a store that fails --------------------------------------------------------------------------


class Trouble:
    """Answers the first `times` reads with a fault, then lets the server answer."""

    def __init__(self, times: int, fault: Response | type[Exception]) -> None:
        self.times, self.fault, self.seen = times, fault, 0

    def __call__(self, request: Request) -> Response | None:
        if request.params.get("alt") != "media":
            return None
        self.seen += 1
        if self.seen > self.times:
            return None
        if isinstance(self.fault, Response):
            return self.fault
        raise self.fault


def short(claimed: int) -> Response:
    return Response(200, {"Content-Length": str(claimed), "Connection": "close"}, b"0123")


PASSING = {
    "503": Response(503, body=b"busy"),
    "500": Response(500),
    "502": Response(502),
    "429": Response(429, body=b"slow down"),
    "408": Response(408),
    "reset": ConnectionResetError,
    "short": short(10),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_passing_trouble_is_retried_and_counted(
    store: Store, fault: Response | type[Exception]
) -> None:
    """A job of days meets all of these; each repetition is a request and a retry in the metrics."""
    storage.publish("gs://bucket/x", b"0123456789")
    requests, received = sum_of("store_requests"), metric("store_bytes", operation="read")
    retries, errors = sum_of("store_retries"), sum_of("store_errors")
    store.intercept = trouble = Trouble(2, fault)
    assert storage.read("gs://bucket/x") == b"0123456789"
    assert trouble.seen == 3
    retried = sum_of("store_retries") - retries
    # The HTTP client itself sends once more what a connection that was kept open has lost.
    assert retried in ((1, 2) if fault is ConnectionResetError else (2,))
    assert sum_of("store_requests") == requests + retried + 1
    assert metric("store_bytes", operation="read") == received + 10
    assert sum_of("store_errors") == errors


def sum_of(name: str) -> float:
    """A counter over all its labels."""
    return sum(
        sample.value
        for family in telemetry.REGISTRY.collect()
        for sample in family.samples
        if sample.name == f"quickdraw_{name}_total"
    )


@pytest.mark.parametrize(
    ("fault", "cause"),
    [(PASSING["503"], "503"), (PASSING["429"], "429"), (PASSING["reset"], "ServerDisconnected")],
    ids=["503", "429", "reset"],
)
def test_lasting_trouble_ends_after_the_bound(
    store: Store, fault: Response | type[Exception], cause: str
) -> None:
    """Never a hang and never without a name: the object, what was tried, how often, and why."""
    storage.publish("gs://bucket/some/x.tar", b"0123456789")
    errors, requests = sum_of("store_errors"), sum_of("store_requests")
    store.intercept = trouble = Trouble(10**9, fault)
    with pytest.raises(StorageError) as raised:
        storage.read_range("gs://bucket/some/x.tar", 2, 3)
    message = str(raised.value)
    assert message.startswith(
        f"gs://bucket/some/x.tar: read_range failed after {storage.ATTEMPTS} tries"
    )
    assert cause in message
    most = storage.ATTEMPTS * (2 if fault is ConnectionResetError else 1)  # as above
    assert storage.ATTEMPTS <= trouble.seen <= most
    assert sum_of("store_requests") == requests + storage.ATTEMPTS
    assert sum_of("store_errors") == errors + 1


def test_a_store_that_is_not_there(store: Store) -> None:
    """The wrong address, or a network that is down: the same bound, and the address in words."""
    store.server.__exit__()
    with pytest.raises(StorageError, match=r"gs://bucket/x: stat failed after .* tries: .*onnect"):
        storage.size("gs://bucket/x")


def test_waits_grow_and_are_spread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of ranks that come back at the same moment would be the next outage."""
    waits: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", waits.append)
    monkeypatch.setattr(storage, "BACKOFF_SECONDS", 1.0)
    storage.publish("gs://bucket/x", b"x")
    runs = []
    for _ in range(3):
        store.intercept = Trouble(10**9, PASSING["503"])
        waits.clear()
        with pytest.raises(StorageError):
            storage.read("gs://bucket/x")
        runs.append(list(waits))
    for run in runs:
        assert len(run) == storage.ATTEMPTS - 1
        for number, wait in enumerate(run):
            assert 0.5 * 2**number <= wait <= 1.5 * 2**number
    assert runs[0] != runs[1] != runs[2]


@pytest.mark.parametrize("status", [400, 401, 403])
def test_what_will_not_pass_is_not_retried(store: Store, status: int) -> None:
    """A missing permission is the user's to repair: waiting for it hides the reason."""
    body = b'{"error": {"code": %d, "message": "you may not"}}' % status
    store.intercept = trouble = Trouble(10**9, Response(status, body=body))
    with pytest.raises(
        StorageError, match=r"(?s)^gs://bucket/x: read failed.*you may not"
    ) as raised:
        storage.read("gs://bucket/x")
    assert trouble.seen == 1
    assert "after 1 try:" in str(raised.value)


def test_a_write_is_retried(store: Store) -> None:
    """Shards and checkpoints are written for hours; one 503 must not lose one."""
    failed = []

    def intercept(request: Request) -> Response | None:
        if request.path.startswith("/upload") and len(failed) < 2:
            failed.append(request.path)
            return Response(503)
        return None

    store.intercept = intercept
    sent = metric("store_bytes", operation="write")
    storage.publish("gs://bucket/x", b"0123456789")
    assert len(failed) == 2
    assert storage.read("gs://bucket/x") == b"0123456789"
    assert metric("store_bytes", operation="write") == sent + 10
