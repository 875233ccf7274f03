"""Nothing is left of an epoch: weeks of them must not end at a limit of the system."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest

from tests.support.caching import URL
from tests.support.datasets import Dataset
from tests.support.delivery import USUAL, feed_settings, open_feed
from tests.support.gcs.local import Store

SELF = Path("/proc/self")

pytestmark = pytest.mark.skipif(
    not (SELF / "fd").exists(), reason="no /proc/self/fd here to count open files with"
)


def open_things() -> dict[str, list[str]]:
    """Names of this process's threads, open files and mapped shards. Not the store's connections:
    its client keeps some, as many as were ever needed at once."""
    gc.collect()
    files = []
    for link in (SELF / "fd").iterdir():
        try:
            files.append(str(link.readlink()))
        except FileNotFoundError:
            continue  # the listing itself
    maps = [line for line in (SELF / "maps").read_text().splitlines() if ".tar" in line]
    return {
        "threads": sorted(
            thread.name for thread in threading.enumerate() if "process_request" not in thread.name
        ),
        "files": sorted(file for file in files if not file.startswith("socket:")),
        "maps": maps,
    }


@pytest.mark.parametrize("source", ["local", "cache", "ranges", "resident"])
def test_three_epochs_leave_no_more_than_one(
    remote: Store, dataset: Dataset, tmp_path: Path, source: str
) -> None:
    """Threads, files and maps, of training and of validation, also where epochs are left early."""
    settings = feed_settings(
        URL if source in ("cache", "ranges") else dataset.folder, tmp_path, USUAL, threads=3,
        resident=source == "resident", cache_bytes=0 if source == "ranges" else 10**9,
    )  # fmt: skip
    feed = open_feed(settings, dataset)
    after: list[dict[str, list[str]]] = []
    for epoch in range(3):
        for batch in feed.epoch(epoch):
            assert len(batch.labels) == 96
        for _ in feed.validation():
            pass
        early = feed.epoch(epoch)
        next(early)
        early.close()
        after.append(open_things())
    assert after[2] == after[0]
    assert after[0]["maps"] == []
