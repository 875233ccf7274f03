"""One writer of a run in a store, whatever is killed, stalled or lost."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import (
    BusyError,
    ChangedError,
    RefusedError,
    StorageError,
    TrainingError,
)
from quickdraw_dist.run import lease
from quickdraw_dist.run.lease import Lease
from tests.support.gcs.fault_proxy import FaultProxy
from tests.support.gcs.local import Store, use_store
from tests.support.gcs.server import Request, Response
from tests.support.processes.holder import holding

RUN = "gs://bucket/run"
WRITER = f"{RUN}/.writer"

HOLD = f"""
import sys
from tests.support.gcs.local import use_store
from quickdraw_dist.run import lease
use_store(sys.argv[1])
lease.RENEW_SECONDS = 0.02
held = lease.Lease("{RUN}")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renewals are frequent here; a holder counts as dead after a second."""
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1.0)


@pytest.fixture
def held(store: Store) -> Iterator[Lease]:
    """The lease of the run, held by this process."""
    taken = Lease(RUN)
    yield taken
    taken.release()


@pytest.fixture
def other(store: Store) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds it."""
    with holding(HOLD, store.server.url) as process:
        yield process


def holder() -> dict[str, object]:
    """Return what the object holds."""
    return dict(json.loads(storage.read(WRITER)))


def renewals(seen: int, count: int) -> None:
    """Wait until the object has been replaced `count` times since generation `seen`."""
    for _ in range(count):
        while (now := storage.read_version(WRITER)[1]) == seen:
            time.sleep(0.005)
        seen = now


def test_a_second_writer_is_told_who_holds_it(
    other: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused as soon as the holder renews, which it keeps doing. Another run is free."""
    with pytest.raises(BusyError) as refused:
        Lease(RUN)
    for text in (str(refused.value), capsys.readouterr().err):
        assert RUN in text
        assert f"process {other.pid} on {socket.gethostname()}" in text
    renewals(storage.read_version(WRITER)[1], 2)
    Lease("gs://bucket/beside").release()


def test_release(store: Store) -> None:
    """A run that has ended leaves nothing to wait for."""
    first = Lease(RUN)
    first.release()
    assert not storage.exists(WRITER)
    Lease(RUN).release()


def test_a_killed_writer_on_this_host(
    other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command at once: the writer's process is gone, so nothing waits for its expiry."""
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1e9)
    other.kill()
    other.wait()
    taken = Lease(RUN)
    assert holder()["process"] == os.getpid()
    taken.release()


def test_a_killed_writer_on_another_host(
    other: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of another host, or container, only the missing renewals are known."""
    other.kill()
    other.wait()
    monkeypatch.setattr(lease, "_pid_namespace", lambda: "another host's")
    taken = Lease(RUN)
    assert "Waiting up to 1 s for a renewal" in capsys.readouterr().err
    assert holder()["process"] == os.getpid()
    taken.release()


def test_a_stopped_holder_that_wakes_up(held: Lease) -> None:
    """A host that stalled for minutes finds its run taken over: it must write nothing more, and
    its release must not remove the new holder's lease."""
    held.check()
    taker = json.dumps({"id": "x", "who": "process 7 on elsewhere"}).encode()
    while holder()["id"] != "x":  # taken over between two renewals
        with contextlib.suppress(ChangedError):
            storage.publish_version(WRITER, taker, storage.read_version(WRITER)[1])
    held._thread.join()
    for _ in range(2):
        with pytest.raises(TrainingError, match="process 7 on elsewhere writes this run now"):
            held.check()
    held.release()
    assert holder()["who"] == "process 7 on elsewhere"


@pytest.mark.parametrize("removed", [True, False])
def test_an_object_that_is_no_lease(store: Store, removed: bool) -> None:
    """Another program's file of that name, or the object removed by hand: no traceback, and never
    two writers."""
    if removed:
        taken = Lease(RUN)
        storage.remove_folder(RUN)
        taken._thread.join()
        with pytest.raises(TrainingError, match="another process writes this run now"):
            taken.check()
    else:
        storage.publish(WRITER, b"[1]")
        Lease(RUN).release()


def test_no_such_bucket(store: Store) -> None:
    """Refused at the start, not found out after the first epoch."""
    with pytest.raises(RefusedError, match="--output gs://missing/run: no such bucket"):
        Lease("gs://missing/run")


def test_lost_responses(store: Store) -> None:
    """The store did the write, and the connection broke: the retry finds the object changed, by
    this very process, which is no other writer."""
    with FaultProxy(store.server.url, ["reset"], share=0.5) as proxy:
        use_store(proxy.url)
        taken = Lease(RUN)
        renewals(0, 30)
        assert proxy.did["reset"] > 10
        taken.check()
        taken.release()


def test_a_store_that_is_down_for_a_while(
    store: Store, held: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other process can take the lease meanwhile: saving fails until the store is back."""
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.0)  # every renewal is too old
    down = Response(503)

    def refuse(request: Request) -> Response:
        return down

    store.intercept = refuse
    with pytest.raises(StorageError):
        held.check()
    store.intercept = None
    held.check()
    renewals(storage.read_version(WRITER)[1], 2)
