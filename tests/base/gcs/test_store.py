"""A failing store: transient failures are retried, a bounded number of times, and counted; others
are errors that name the object."""

from __future__ import annotations

import threading

import pytest

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import DeniedError, RefusedError, StorageError
from quickdraw_dist.base.gcs import request
from tests.support.gcs.fault_proxy import STATUSES, FaultProxy
from tests.support.gcs.local import Store, use_store
from tests.support.gcs.server import Request, Response
from tests.support.metrics import metric, sum_of

URL = "gs://bucket/some/x.tar"
DATA = bytes(range(256)) * 40


class Trouble:
    """Answers the first `times` requests for an object's bytes with a fault."""

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


# -- transient failures ----------------------------------------------------------------------------

TRANSIENT = {
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


@pytest.mark.parametrize("case", TRANSIENT)
def test_transient_failures_are_retried_and_counted(store: Store, case: str) -> None:
    """A job of days meets all of these; the metrics count every retry, also as a request."""
    fault, kind = TRANSIENT[case]
    storage.publish(URL, DATA)
    requests, received = sum_of("store_requests"), metric("store_bytes", operation="read_range")
    retries, errors = metric("store_retries", kind=kind), sum_of("store_errors")
    store.intercept = trouble = Trouble(2, fault)
    assert storage.read_range(URL, 0, len(DATA)) == DATA
    assert trouble.seen == 3
    retried = metric("store_retries", kind=kind) - retries
    # The HTTP client itself repeats what a kept-alive connection has lost.
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
    """What differs from the stored object is read again, and never returned."""
    storage.publish(URL, DATA)
    retries = metric("store_retries", kind="checksum")
    store.intercept = Trouble(2, damaged)
    assert storage.read(URL) == DATA
    assert metric("store_retries", kind="checksum") == retries + 2
    store.intercept = Trouble(10**9, damaged)
    with pytest.raises(
        StorageError, match=r"x\.tar: read failed after 6 tries: checksum: received .*"
    ):
        storage.read(URL)


@pytest.mark.parametrize(
    "headers", [{}, {"X-Goog-Hash": "md5=bm9uZQ=="}, {"Content-Encoding": "identity"}], ids=str
)
def test_a_store_without_checksums(store: Store, headers: dict[str, str]) -> None:
    """Nothing to compare with: a compressed answer has the checksum of other bytes."""
    store.intercept = Trouble(1, Response(200, headers, b"anything"))
    assert storage.read(URL) == b"anything"


def test_each_page_of_a_listing_is_retried_alone(store: Store) -> None:
    """A dataset has thousands of shards; a listing that restarts after every fault never ends."""
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
    """Thousands of ranks that retry at the same moment would cause the next outage."""
    waits: list[float] = []
    monkeypatch.setattr(request.time, "sleep", waits.append)
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


# -- lasting failures ------------------------------------------------------------------------------


def test_a_missing_bucket(store: Store) -> None:
    """A mistyped --dest: no retry, and the bucket is named."""
    for call in (storage.read, storage.size, lambda url: storage.publish(url, b"x")):
        with pytest.raises(FileNotFoundError, match=r"no such object or bucket: 'gs://bukket/x'"):
            call("gs://bukket/x")


@pytest.mark.parametrize("status", [400, 401, 403, 412])
def test_lasting_failures_are_not_retried(store: Store, status: int) -> None:
    """A missing permission is the user's to repair: exit code 2, and how to log in."""
    body = b'{"error": {"code": %d, "message": "you may not"}}' % status
    errors = metric("store_errors", kind=str(status))
    store.intercept = trouble = Trouble(10**9, Response(status, body=body))
    with pytest.raises(StorageError) as caught:
        storage.read(URL)
    assert trouble.seen == 1
    assert metric("store_errors", kind=str(status)) == errors + 1
    error = caught.value
    said = f"{URL}: read failed after 1 try: {status}: you may not"
    assert str(error).startswith(said)
    assert isinstance(error, DeniedError) is (status in (401, 403))
    if isinstance(error, DeniedError):
        assert error.subject == URL
        assert "gcloud auth application-default login" in error.remedy


def test_an_unreachable_store(store: Store) -> None:
    """A wrong address, or no network: the same bound, and the address in the error."""
    store.server.__exit__()
    with pytest.raises(StorageError, match=r"gs://bucket/x: stat failed after 6 tries: connection"):
        storage.size("gs://bucket/x")


LASTING = {
    **{status: rf"{status}: \w+" for status in STATUSES},
    "reset": "connection: ",
    "stall": "stall: ",
    "cut": "short: ",
    "short": "short: ",
    "trickle": "stall: stalled, or slower than 1,000,000 bytes/s",
}


@pytest.mark.parametrize("fault", LASTING)
@pytest.mark.parametrize("operation", ["read_range", "list", "write"])
def test_lasting_trouble_ends_after_the_bound(
    store: Store, monkeypatch: pytest.MonkeyPatch, fault: str, operation: str
) -> None:
    """Never a hang: an error names the object, the request, the tries and the cause."""
    storage.publish(URL, DATA)
    errors, requests = sum_of("store_errors"), sum_of("store_requests")
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    if fault in ("stall", "trickle"):
        monkeypatch.setattr(storage, "STALL_SECONDS", 0.3)
        monkeypatch.setattr(storage, "MIN_BYTES_PER_SECOND", 1_000_000)
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
        assert not isinstance(raised.value, RefusedError)  # a later start may succeed
        assert proxy.did[fault] == sum(proxy.did.values()) >= 2
    assert sum_of("store_requests") == requests + 2
    assert sum_of("store_errors") == errors + 1


def test_a_stalled_upload_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is open, but the server reads nothing; the sockets' buffers are full."""
    given_up = threading.Event()

    def intercept(request: Request) -> Response | None:
        given_up.wait()
        raise ConnectionResetError

    store.intercept = intercept
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    monkeypatch.setattr(storage, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(storage, "MIN_BYTES_PER_SECOND", 10**9)
    try:
        with pytest.raises(StorageError, match=r"x\.tar: write failed after 2 tries: stall: "):
            storage.publish(URL, bytes(20 << 20))
    finally:
        given_up.set()


def test_a_slow_answer_is_no_fault(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transfer that keeps moving may take longer than STALL_SECONDS."""
    storage.publish(URL, DATA)
    retries = sum_of("store_retries")
    monkeypatch.setattr(storage, "STALL_SECONDS", 1.0)
    with FaultProxy(store.server.url, ["trickle"], 1.0, pause_seconds=0.15) as proxy:
        use_store(proxy.url)
        assert storage.read(URL) == DATA
        assert proxy.did == {"trickle": 1}
    assert sum_of("store_retries") == retries
