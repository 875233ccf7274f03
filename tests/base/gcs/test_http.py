"""Who asks the store: nobody where there is no account, and what is said when that is refused."""

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
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.gcs import http as gcs_client
from quickdraw_dist.base.gcs import store as object_store
from quickdraw_dist.base.gcs.http import Client
from quickdraw_dist.base.gcs.store import Pace
from quickdraw_dist.base.storage import StorageError
from tests.support.gcs.local import Store
from tests.support.gcs.server import Request, Response

PACE = Pace(10.0, 30.0, 10_000)


def without_account(home: Path, script: str, **more: str) -> str:
    """Run Python as on a machine where nobody has logged in, and that is none of Google's."""
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
    """A newcomer's machine: no token is sent, and a refusal will say why, and how to log in."""
    script = (
        "from quickdraw_dist.base.gcs import http as gcs_client, store as object_store\n"
        "client = gcs_client.connect(None, object_store.Pace(10.0, 30.0, 10_000))\n"
        "print(client.base, client._get_headers(None))\n"
        "print(client.remedy)\n"
    )
    asked, remedy = without_account(tmp_path, script).splitlines()
    assert asked.startswith("https://storage.googleapis.com/")
    assert "authorization" not in asked.lower()
    for part in ("without an account", "not found", "gcloud auth application-default login"):
        assert part in remedy
    missing = str(tmp_path / "key.json")
    said = without_account(tmp_path, script, GOOGLE_APPLICATION_CREDENTIALS=missing)
    assert missing in said  # the slip, not only its consequence


def test_a_refusal_says_how_to_log_in(store: Store) -> None:
    """The bucket is private: one try, exit code 2, and the command to type."""
    body = b'{"error": {"message": "Anonymous caller does not have storage.objects.get access"}}'
    store.intercept = lambda request: Response(401, body=body)
    with pytest.raises(RefusedError) as raised:
        storage.read("gs://bucket/x")
    assert isinstance(raised.value, StorageError)  # whoever goes on without the store can do so
    for part in ("gs://bucket/x: read failed after 1 try: 401: Anonymous caller", "gcloud auth"):
        assert part in str(raised.value)


@pytest.fixture
def account(store: Store, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client that is logged in."""
    client = Client(
        pace=PACE, remedy="Ask for rights.", token=AnonymousCredentials(), skip_instance_cache=True
    )
    monkeypatch.setattr(gcs_client, "connect", lambda endpoint, pace: client)
    return client


def test_a_token_that_has_just_ended_is_renewed(store: Store, account: Client) -> None:
    """Of an account that works, 401 means the token alone; the next try has a fresh one."""
    storage.publish("gs://bucket/x", b"data")
    seen: list[str] = []

    def intercept(request: Request) -> Response | None:
        seen.append(request.path)
        return Response(401, body=b"Invalid Credentials") if len(seen) == 1 else None

    store.intercept = intercept
    assert storage.read("gs://bucket/x") == b"data"
    assert len(seen) == 2


def test_an_account_without_rights_is_told_which(store: Store, account: Client) -> None:
    """Logging in again would not help."""
    store.intercept = lambda request: Response(403, body=b"does not have storage.objects.get")
    with pytest.raises(RefusedError, match=r"after 1 try: 403: .*objects\.get\. Ask for rights\.$"):
        storage.read("gs://bucket/x")


def test_threads_that_come_first_share_a_client(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen headers are read at once at the start: one login, one pool of connections."""
    second, made = threading.Barrier(2), []

    def make(**options: object) -> object:
        made.append(options)
        with suppress(threading.BrokenBarrierError):
            second.wait(0.2)  # in vain, unless another thread is let in here, too
        return object()

    monkeypatch.setattr(gcs_client, "Client", make)
    with ThreadPoolExecutor(2) as pool:
        clients = list(
            pool.map(lambda _: gcs_client.connect(store.server.url, Pace(1, 2, 3)), range(2))
        )
    assert len(made) == 1 and clients[0] is clients[1]


def test_a_checksum_in_a_line_of_its_own() -> None:
    """GCS sends one X-Goog-Hash for each kind, where other servers put both into one."""
    lines = [("x-goog-hash", "crc32c=4waSgw=="), ("x-goog-hash", "md5=bm9uZQ==")]
    for headers in (lines, lines[::-1], [("X-Goog-Hash", "md5=bm9uZQ==,crc32c=4waSgw==")]):
        assert object_store._kept_crc32c(CIMultiDict(headers)) == 0xE3069283
