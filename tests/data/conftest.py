"""Fixtures of the stream's tests."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.caching import URL
from tests.support.datasets import Dataset, DatasetMaker
from tests.support.gcs.local import Store
from tests.support.tars import LAYOUTS

OURS = ("loader", "decode", "fetch")
"""Names of threads that an epoch starts; a store's client and server have their own."""


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """A thread that outlives its epoch holds buffers and the store's connections."""
    yield
    gc.collect()
    assert [t.name for t in threading.enumerate() if t.name.startswith(OURS)] == []


@pytest.fixture
def remote(store: Store, dataset: Dataset) -> Store:
    """A store with the small dataset at `URL`; requests are counted from here on."""
    store.upload(dataset.folder, URL)
    store.requests.clear()
    return store


@pytest.fixture(scope="module")
def ours(make_dataset: DatasetMaker) -> Callable[[str], Dataset]:
    """The small dataset in each layout, without its manifest."""
    made: dict[str, Dataset] = {}

    def get(layout: str) -> Dataset:
        if layout not in made:
            made[layout] = make_dataset(**LAYOUTS[layout])
            Path(made[layout].folder, "manifest.json").unlink()
        return made[layout]

    return get
