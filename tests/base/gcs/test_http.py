"""How a request is sent: with which account, through which proxy."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials
from multidict import CIMultiDict

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError, StorageError
from quickdraw_dist.base.gcs import http
from quickdraw_dist.base.gcs.http import Client
from quickdraw_dist.base.gcs.request import Timeouts
from quickdraw_dist.base.gcs.store import stored_crc32c
from tests.support.gcs.local import Store
from tests.support.gcs.server import Request, Response

TIMEOUTS = Timeouts(10.0, 30.0, 10_000)


def without_account(home: Path, script: str, **more: str) -> str:
    """Run Python as on a machine without an account, outside of Google's cloud."""
    hidden = ("GOOGLE", "CLOUDSDK", "GCE_", "STORAGE_EMULATOR_HOST")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=kept | {"HOME": str(home), "NO_GCE_CHECK": "true"} | more,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_without_an_account_public_buckets_are_read_anonymously(tmp_path: Path) -> None:
    """No token is sent; the remedy says why, and how to log in."""
    script = (
        "from quickdraw_dist.base.gcs import http, request\n"
        "client = http.connect(None, request.Timeouts(10.0, 30.0, 10_000))\n"
        "print(client.base, client._get_headers(None))\n"
        "print(client.remedy)\n"
    )
    asked, remedy = without_account(tmp_path, script).splitlines()
    assert asked.startswith("https://storage.googleapis.com/")
    assert "authorization" not in asked.lower()
    for part in ("request was anonymous", "not found", "gcloud auth application-default login"):
        assert part in remedy
    missing = str(tmp_path / "key.json")
    said = without_account(tmp_path, script, GOOGLE_APPLICATION_CREDENTIALS=missing)
    assert missing in said  # the cause, not only its consequence


def test_a_refusal_says_how_to_log_in(store: Store) -> None:
    """A private bucket: one try, exit code 2, and the command to type."""
    body = b'{"error": {"message": "Anonymous caller does not have storage.objects.get access"}}'
    store.intercept = lambda request: Response(401, body=body)
    with pytest.raises(RefusedError) as raised:
        storage.read("gs://bucket/x")
    assert isinstance(raised.value, StorageError)  # for callers that can do without the store
    assert raised.value.problem.startswith("read failed after 1 try: 401: Anonymous caller")
    assert "gcloud auth" in raised.value.remedy


@pytest.fixture
def account(store: Store, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client that is logged in."""
    client = Client(
        timeouts=TIMEOUTS,
        remedy="Ask for access.",
        token=AnonymousCredentials(),
        skip_instance_cache=True,
    )
    monkeypatch.setattr(http, "connect", lambda endpoint, timeouts: client)
    return client


def test_an_expired_token_is_renewed(store: Store, account: Client) -> None:
    """With an account, 401 means an expired token; the next try has a new one."""
    storage.publish("gs://bucket/x", b"data")
    seen: list[str] = []

    def intercept(request: Request) -> Response | None:
        seen.append(request.path)
        return Response(401, body=b"Invalid Credentials") if len(seen) == 1 else None

    store.intercept = intercept
    assert storage.read("gs://bucket/x") == b"data"
    assert len(seen) == 2


def test_an_account_without_permission(store: Store, account: Client) -> None:
    """Logging in again would not help."""
    store.intercept = lambda request: Response(403, body=b"does not have storage.objects.get")
    with pytest.raises(RefusedError, match=r"after 1 try: 403: .*objects\.get\. Ask for access\.$"):
        storage.read("gs://bucket/x")


def test_first_requests_share_a_client(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen threads read at once at the start: one login, one pool of connections."""
    second, made = threading.Barrier(2), []

    def make(**options: object) -> object:
        made.append(options)
        with suppress(threading.BrokenBarrierError):
            second.wait(0.2)  # times out, unless another thread enters, too
        return object()

    monkeypatch.setattr(http, "Client", make)
    with ThreadPoolExecutor(2) as pool:
        clients = list(
            pool.map(lambda _: http.connect(store.server.url, Timeouts(1, 2, 3)), range(2))
        )
    assert len(made) == 1 and clients[0] is clients[1]


def test_a_checksum_in_a_line_of_its_own() -> None:
    """GCS sends one X-Goog-Hash per kind of checksum; other servers put both into one."""
    lines = [("x-goog-hash", "crc32c=4waSgw=="), ("x-goog-hash", "md5=bm9uZQ==")]
    for headers in (lines, lines[::-1], [("X-Goog-Hash", "md5=bm9uZQ==,crc32c=4waSgw==")]):
        assert stored_crc32c(CIMultiDict(headers)) == 0xE3069283


def test_a_store_behind_a_proxy(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy alone knows the store's name; https_proxy and no_proxy are heeded, too."""
    storage.publish("gs://bucket/x", b"contents")
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    monkeypatch.setenv("http_proxy", store.server.url)
    monkeypatch.setenv("https_proxy", store.server.url)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://store.invalid")
    assert storage.read("gs://bucket/x") == b"contents"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "https://store.invalid")
    with pytest.raises(StorageError, match="501"):  # the test's proxy knows no CONNECT
        storage.read("gs://bucket/x")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://other.invalid")
    monkeypatch.setenv("no_proxy", "other.invalid")
    with pytest.raises(StorageError, match=r"other\.invalid"):
        storage.read("gs://bucket/x")
