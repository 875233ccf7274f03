"""A store that fails: what passes is tried again, within bounds, and counted; what does not is
told with the name of the object."""

from __future__ import annotations

import io
import threading

import pytest

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.gcs import store as object_store
from quickdraw_dist.base.storage import ChangedError, StorageError
from quickdraw_dist.base.telemetry import metrics as telemetry
from tests.support.gcs.fault_proxy import STATUSES, FaultProxy
from tests.support.gcs.local import Store, use_store
from tests.support.gcs.server import Request, Response

URL = "gs://bucket/some/x.tar"
DATA = bytes(range(256)) * 40


def metric(name: str, **labels: str) -> float:
    return telemetry.REGISTRY.get_sample_value(f"quickdraw_{name}_total", labels) or 0.0


def sum_of(name: str) -> float:
    """A counter over all its labels."""
    return sum(
        sample.value
        for family in telemetry.REGISTRY.collect()
        for sample in family.samples
        if sample.name == f"quickdraw_{name}_total"
    )


class Trouble:
    """Answers the first `times` requests for an object's bytes with a fault; the rest pass."""

    def __init__(self, times: int, fault: Response | type[Exception]) -> None:
        self.times, self.fault, self.seen = times, fault, 0

    def __call__(self, request: Request) -> Response | None:
        if request.params.get("alt") != "media" and not request.path.startswith("/upload"):
            return None
        self.seen += 1
        if self.seen > self.times:
            return None
        if isinstance(self.fault, Response):
            return self.fault
        raise self.fault


# -- what passes ---------------------------------------------------------------------------------

PASSING = {
    "503": (Response(503, body=b"busy"), "503"),
    "500": (Response(500), "500"),
    "502": (Response(502, body=b"an invalid gateway"), "502"),
    "429": (Response(429, body=b"slow down"), "429"),
    "408": (Response(408), "408"),
    "quota": (Response(403, body=b'{"error": {"message": "userRateLimitExceeded"}}'), "403"),
    "reset": (ConnectionResetError, "connection"),
    "cut": (Response(200, {"Content-Length": "10", "Connection": "close"}, b"0123"), "short"),
    "short": (Response(206, {"Content-Range": "bytes 0-3/10240"}, b"0123"), "short"),
    "no range": (Response(200, {}, b"0123"), "short"),
}  # fmt: skip


@pytest.mark.parametrize("case", PASSING)
def test_passing_trouble_is_retried_and_counted(store: Store, case: str) -> None:
    """A job of days meets all of these; each repetition is a request and a retry in the metrics."""
    fault, kind = PASSING[case]
    storage.publish(URL, DATA)
    requests, received = sum_of("store_requests"), metric("store_bytes", operation="read_range")
    retries, errors = metric("store_retries", kind=kind), sum_of("store_errors")
    store.intercept = trouble = Trouble(2, fault)
    assert storage.read_range(URL, 0, len(DATA)) == DATA
    assert trouble.seen == 3
    retried = metric("store_retries", kind=kind) - retries
    # The HTTP client itself sends once more what a connection that was kept open has lost.
    assert retried in ((1, 2) if case == "reset" else (2,))
    assert sum_of("store_requests") == requests + retried + 1
    assert metric("store_bytes", operation="read_range") == received + len(DATA)
    assert sum_of("store_errors") == errors


@pytest.mark.parametrize(
    "damaged",
    [
        Response(200, {"X-Goog-Hash": "crc32c=AAAAAA==,md5=bm9uZQ=="}, DATA),
        Response(200, {"X-Goog-Hash": "md5=bm9uZQ==, crc32c=AAAAAA=="}, DATA[:-1]),
    ],
    ids=["flipped", "shorter"],
)
def test_a_whole_object_is_compared_with_its_checksum(store: Store, damaged: Response) -> None:
    """Not what the store holds: noticed before anybody sees it, and read again."""
    storage.publish(URL, DATA)
    retries = metric("store_retries", kind="checksum")
    store.intercept = Trouble(2, damaged)
    assert storage.read(URL) == DATA
    assert metric("store_retries", kind="checksum") == retries + 2
    store.intercept = Trouble(10**9, damaged)
    with pytest.raises(StorageError, match=r"x\.tar: read failed after 6 tries: checksum: .* came"):
        storage.read(URL)


@pytest.mark.parametrize(
    "headers", [{}, {"X-Goog-Hash": "md5=bm9uZQ=="}, {"Content-Encoding": "identity"}], ids=str
)
def test_a_store_without_checksums_is_believed(store: Store, headers: dict[str, str]) -> None:
    """Nothing to compare with; what is packed on the way has the checksum of something else."""
    store.intercept = Trouble(1, Response(200, headers, b"anything"))
    assert storage.read(URL) == b"anything"


def test_each_page_of_a_listing_is_repeated_alone(store: Store) -> None:
    """A dataset has thousands of shards; a listing that starts anew with every fault never ends."""
    for number in range(2500):
        store.server.gcs.store.insert(
            "bucket", {"name": f"a/{number:04d}.tar"}, memoryview(b"x"), {}
        )
    failed: set[str] = set()
    pages = []

    def intercept(request: Request) -> Response | None:
        pages.append(token := request.params.get("pageToken", ""))
        first = token not in failed
        failed.add(token)
        return Response(503) if first else None

    store.intercept = intercept
    assert list(storage.sizes("gs://bucket/a", ".tar")) == [f"{n:04d}.tar" for n in range(2500)]
    assert len(pages) == 6


def test_waits_grow_and_are_spread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of ranks that come back at the same moment would be the next outage."""
    waits: list[float] = []
    monkeypatch.setattr(object_store.time, "sleep", waits.append)
    monkeypatch.setattr(storage, "BACKOFF_SECONDS", 1.0)
    runs = []
    for _ in range(3):
        store.intercept = Trouble(10**9, Response(503))
        waits.clear()
        with pytest.raises(StorageError):
            storage.read(URL)
        runs.append(list(waits))
    for run in runs:
        assert len(run) == storage.ATTEMPTS - 1
        for number, wait in enumerate(run):
            assert 0.5 * 2**number <= wait <= 1.5 * 2**number
    assert runs[0] != runs[1] != runs[2]


# -- writing -------------------------------------------------------------------------------------


def test_a_write_is_retried(store: Store) -> None:
    """Shards and checkpoints are written for hours; one 503 must not lose one."""
    store.intercept = trouble = Trouble(2, Response(503))
    sent = metric("store_bytes", operation="write")
    storage.publish(URL, DATA)
    store.intercept = None
    assert trouble.seen == 3
    assert storage.read(URL) == DATA
    assert metric("store_bytes", operation="write") == sent + len(DATA)


def test_what_is_damaged_on_its_way_to_the_store_never_exists(store: Store) -> None:
    """The store is told the checksum with the bytes: readers see the old or the right ones."""
    storage.publish(URL, b"old")
    seen = []

    def intercept(request: Request) -> Response | None:
        if request.path.startswith("/upload") and len(seen) < 2:
            body = bytes(request.read())
            damaged = body.replace(DATA, b"\xff" + DATA[1:])
            request.stream, request.left = io.BytesIO(damaged), len(damaged)
            seen.append(bytes(store.server.gcs.store.read("bucket", "some/x.tar", {})[1]))
        return None

    store.intercept = intercept
    retries = metric("store_retries", kind="checksum")
    storage.publish(URL, DATA)
    assert seen == [b"old", b"old"]
    assert storage.read(URL) == DATA
    assert metric("store_retries", kind="checksum") == retries + 2


def test_an_upload_whose_answer_was_lost_is_sent_again(store: Store) -> None:
    """The object is there, but who wrote it cannot know: the same bytes again do no harm."""

    def intercept(request: Request) -> Response | None:
        if request.path.startswith("/upload") and not lost:
            lost.append(store.server.gcs.answer(request).status)
            raise ConnectionResetError
        return None

    lost: list[int] = []
    store.intercept = intercept
    storage.publish(URL, DATA)
    assert lost == [200]
    assert storage.read(URL) == DATA
    assert list(storage.sizes("gs://bucket/some", ".tar")) == ["x.tar"]


def test_a_removal_whose_answer_was_lost_is_done(store: Store) -> None:
    """Asked again, the store knows no such object: that is what was wanted."""
    for name in ("a", "b"):
        storage.publish(f"gs://bucket/step-1/{name}", b"x")
    lost = []

    def intercept(request: Request) -> Response | None:
        if request.method == "DELETE" and len(lost) < 1:
            lost.append(store.server.gcs.answer(request).status)
            return Response(503)
        return None

    store.intercept = intercept
    storage.remove_folder("gs://bucket/step-1")
    assert lost == [204]
    assert not storage.exists("gs://bucket/step-1/a") and not storage.exists("gs://bucket/step-1/b")


def test_a_bucket_that_is_not_there(store: Store) -> None:
    """A slip of the pen in DEST: not worth a retry, and named."""
    for look in (storage.read, storage.size, lambda url: storage.publish(url, b"x")):
        with pytest.raises(FileNotFoundError, match=r"no such object or bucket: 'gs://bukket/x'"):
            look("gs://bukket/x")


# -- what does not pass --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 412])
def test_what_will_not_pass_is_not_retried(store: Store, status: int) -> None:
    """A missing permission is the user's to repair: waiting for it hides the reason."""
    body = b'{"error": {"code": %d, "message": "you may not"}}' % status
    errors = metric("store_errors", kind=str(status))
    store.intercept = trouble = Trouble(10**9, Response(status, body=body))
    said = rf"^gs://bucket/some/x\.tar: read failed after 1 try: {status}: you may not"
    with pytest.raises(StorageError, match=said) as raised:
        storage.read(URL)
    assert trouble.seen == 1
    assert metric("store_errors", kind=str(status)) == errors + 1
    # Exit code 2, 'do not try again', for a lack of rights alone; and how to get them.
    assert isinstance(raised.value, RefusedError) is (status in (401, 403))
    assert ("gcloud auth application-default login" in str(raised.value)) is (status in (401, 403))


def test_a_store_that_is_not_there(store: Store) -> None:
    """The wrong address, or a network that is down: the same bound, and the address in words."""
    store.server.__exit__()
    with pytest.raises(StorageError, match=r"gs://bucket/x: stat failed after 6 tries: connection"):
        storage.size("gs://bucket/x")


LASTING = {
    **{status: rf"{status}: \w+" for status in STATUSES},
    "reset": "connection: ",
    "stall": "stall: ",
    "cut": "short: ",
    "short": "short: ",
    "trickle": "stall: it stood still, or was slower than 1,000,000 bytes/s",
}


@pytest.mark.parametrize("fault", LASTING)
@pytest.mark.parametrize("operation", ["read_range", "list", "write"])
def test_lasting_trouble_ends_after_the_bound(
    store: Store, monkeypatch: pytest.MonkeyPatch, fault: str, operation: str
) -> None:
    """Never a hang and never without a name: the object, what was tried, how often, and why."""
    storage.publish(URL, DATA)
    errors, requests = sum_of("store_errors"), sum_of("store_requests")
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    if fault in ("stall", "trickle"):
        monkeypatch.setattr(storage, "STALL_SECONDS", 0.3)
        monkeypatch.setattr(storage, "SLOWEST_BYTES_A_SECOND", 1_000_000)
    with FaultProxy(store.server.url, [fault], 1.0, pause_seconds=0.1) as proxy:
        use_store(proxy.url)
        said = rf"^gs://bucket/some(/x\.tar)?: {operation} failed after 2 tries: {LASTING[fault]}"
        with pytest.raises(StorageError, match=said) as raised:
            match operation:
                case "read_range":
                    storage.read_range(URL, 0, 1000)
                case "list":
                    storage.sizes("gs://bucket/some", ".tar")
                case "write":
                    storage.publish(URL, DATA)
        assert not isinstance(raised.value, RefusedError)  # the moment's: worth another start
        assert proxy.did[fault] == sum(proxy.did.values()) >= 2
    assert sum_of("store_requests") == requests + 2
    assert sum_of("store_errors") == errors + 1


def test_an_upload_that_nobody_takes_is_given_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stands, but the bytes stay here: more than the sockets between can hold."""
    given_up = threading.Event()

    def intercept(request: Request) -> Response | None:
        given_up.wait()
        raise ConnectionResetError

    store.intercept = intercept
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    monkeypatch.setattr(storage, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(storage, "SLOWEST_BYTES_A_SECOND", 10**9)
    try:
        with pytest.raises(StorageError, match=r"x\.tar: write failed after 2 tries: stall: "):
            storage.publish(URL, bytes(20 << 20))
    finally:
        given_up.set()


def test_a_slow_answer_is_no_fault(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps moving is waited for, longer than anything may stand still."""
    storage.publish(URL, DATA)
    retries = sum_of("store_retries")
    monkeypatch.setattr(storage, "STALL_SECONDS", 1.0)
    with FaultProxy(store.server.url, ["trickle"], 1.0, pause_seconds=0.15) as proxy:
        use_store(proxy.url)
        assert storage.read(URL) == DATA
        assert proxy.did == {"trickle": 1}
    assert sum_of("store_retries") == retries


# -- generations -----------------------------------------------------------------------------------


def test_an_object_is_replaced_only_as_it_was_seen(store: Store) -> None:
    """Of two that saw the same object one replaces it; the other is told, once, and changes
    nothing. 0 stands for an object that is not there."""
    assert storage.read_version(URL) == (b"", 0)
    first = storage.publish_version(URL, b"1", 0)
    second = storage.publish_version(URL, b"2", first)
    tries, errors = metric("store_requests", operation="write"), sum_of("store_errors")
    for stale in (0, first):
        with pytest.raises(ChangedError, match=URL):
            storage.publish_version(URL, b"3", stale)
        with pytest.raises(ChangedError):
            storage.remove_version(URL, first)
    assert metric("store_requests", operation="write") == tries + 2
    assert sum_of("store_errors") == errors  # which would wake somebody up
    assert storage.read_version(URL) == (b"2", second)
    storage.remove_version(URL, second)
    assert not storage.exists(URL)


def test_a_lost_answer_leaves_an_object_that_changed(store: Store) -> None:
    """The write was done; the try after it finds the object of another generation."""
    answered: list[Request] = []

    def lose_the_first(request: Request) -> Response | None:
        if request.method == "POST" and not answered:
            answered.append(request)
            store.server.gcs.answer(request)
            raise ConnectionResetError
        return None

    store.intercept = lose_the_first
    with pytest.raises(ChangedError):
        storage.publish_version(URL, DATA, 0)
    assert storage.read(URL) == DATA
