"""The fault proxy hits the same requests in every run, so that a failure can be reproduced."""

from __future__ import annotations

import random
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from tests.support.gcs.fault_proxy import FAULTS, FaultProxy
from tests.support.gcs.local import Store

REQUESTS = [f"GET /o/{name} bytes={start}-" for name in "abcde" for start in range(40)] * 10


def faults_of(requests: list[str], share: float, seed: int = 1) -> dict[str, list[tuple[str, int]]]:
    """Return the faults of each request, try by try."""
    proxy = FaultProxy("http://127.0.0.1:1", FAULTS, share, seed)
    proxy.server_close()
    found: dict[str, list[tuple[str, int]]] = {}
    for request in requests:
        found.setdefault(request, []).append(proxy.choose(request))
    return found


def test_faults_follow_from_the_request_alone() -> None:
    """In any order of requests each one meets the same faults, try after try."""
    shuffled = random.Random(1).sample(REQUESTS, len(REQUESTS))
    assert faults_of(shuffled, 0.2) == faults_of(REQUESTS, 0.2) != faults_of(REQUESTS, 0.2, seed=2)


def test_the_share_is_kept_and_no_request_is_lost() -> None:
    """One request in five is hit, by each kind; with a share of one all of them are."""
    names = [[fault for fault, _ in met] for met in faults_of(REQUESTS, 0.2).values()]
    hit = [fault for met in names for fault in met if fault != "none"]
    assert 0.1 < len(hit) / len(REQUESTS) < 0.2
    assert {*hit} == {*FAULTS}
    assert all("none" in met[start : start + 4] for met in names for start in range(7))
    assert all(fault != "none" for met in faults_of(REQUESTS, 1.0).values() for fault, _ in met)


def test_a_stalled_reply_without_a_body_is_not_sent(store: Store) -> None:
    """Its head would be a whole reply; the next request on the connection would fail instead."""
    with FaultProxy(store.server.url, ["stall"], share=1.0) as proxy:
        for name in "abcdef":
            store.server.gcs.store.insert("bucket", {"name": name}, memoryview(b""), {})
            client = HTTPConnection(urlsplit(proxy.url).netloc, timeout=0.05)
            client.request("DELETE", f"/storage/v1/b/bucket/o/{name}")
            with pytest.raises(TimeoutError):
                client.getresponse()
            client.close()
