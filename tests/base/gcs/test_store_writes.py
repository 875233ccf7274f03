"""Writes and removals: retried, checked by the store, and conditional on a generation."""

from __future__ import annotations

import io

import pytest

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import ChangedError
from tests.support.gcs.local import Store
from tests.support.gcs.server import Request, Response
from tests.support.metrics import metric, sum_of

URL = "gs://bucket/some/x.tar"
DATA = bytes(range(256)) * 40


def test_a_write_is_retried(store: Store) -> None:
    """One 503 must not lose a shard or a checkpoint."""
    tries: list[str] = []

    def intercept(request: Request) -> Response | None:
        tries.append(request.path)
        return Response(503) if len(tries) < 3 else None

    store.intercept = intercept
    sent = metric("store_bytes", operation="write")
    storage.publish(URL, DATA)
    store.intercept = None
    assert len(tries) == 3
    assert storage.read(URL) == DATA
    assert metric("store_bytes", operation="write") == sent + len(DATA)


def test_a_damaged_upload_never_becomes_an_object(store: Store) -> None:
    """The store receives the checksum with the bytes: readers see the old or the correct ones."""
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
    """The object exists, but its writer cannot know; the same bytes again do no harm."""

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
    """The retry finds no such object, as intended."""
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


# -- generations -----------------------------------------------------------------------------------


def test_an_object_is_replaced_only_as_it_was_seen(store: Store) -> None:
    """Of two writers that saw the same object one replaces it; the other gets ChangedError, after
    one try. Generation 0: no such object."""
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
    assert sum_of("store_errors") == errors  # which would raise an alert
    assert storage.read_version(URL) == (b"2", second)
    storage.remove_version(URL, second)
    assert not storage.exists(URL)


def test_a_lost_answer_leaves_an_object_that_changed(store: Store) -> None:
    """The first try wrote; its retry finds another generation."""
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
