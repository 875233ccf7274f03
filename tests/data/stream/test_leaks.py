"""An epoch leaves no thread, file or map behind: a long run must not hit a system limit."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest

from tests.support.data.caching import URL
from tests.support.data.datasets import Dataset
from tests.support.data.delivery import USUAL
from tests.support.data.feeds import make_settings, open_feed
from tests.support.gcs.local import Store

SELF = Path("/proc/self")

pytestmark = pytest.mark.skipif(
    not (SELF / "fd").exists(), reason="no /proc/self/fd here to count open files with"
)


def open_resources() -> dict[str, list[str]]:
    """Names of this process's threads, open files and mapped shards. Connections to the store are
    not counted: its client keeps as many as were needed at once."""
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
    """In training and validation, also where epochs are abandoned."""
    settings = make_settings(
        URL if source in ("cache", "ranges") else dataset.folder, tmp_path, USUAL, threads=3,
        resident=source == "resident", cache_bytes=0 if source == "ranges" else 10**9,
    )  # fmt: skip
    feed = open_feed(settings)
    after: list[dict[str, list[str]]] = []
    for epoch in range(3):
        for batch in feed.epoch(epoch):
            assert len(batch.labels) == 96
        for _ in feed.validation():
            pass
        early = feed.epoch(epoch)
        next(early)
        early.close()
        after.append(open_resources())
    assert after[2] == after[0]
    assert after[0]["maps"] == []
