"""Fixtures of the data's tests: datasets in every layout, and copies that may be damaged."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.shards.plan import Plan
from tests.support.data.caching import URL
from tests.support.data.datasets import CONTENTS, Dataset, DatasetMaker
from tests.support.data.tars import LAYOUTS
from tests.support.gcs.local import Store

OURS = ("loader", "decode", "fetch")
"""Names of threads that an epoch starts; a store's client and server have their own."""


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """A thread that outlives its epoch holds buffers and the store's connections."""
    yield
    gc.collect()
    assert [t.name for t in threading.enumerate() if t.name.startswith(OURS)] == []


@pytest.fixture(scope="session", params=CONTENTS)
def either(request: pytest.FixtureRequest, of_content: Callable[[str], Dataset]) -> Dataset:
    """The small dataset, of bitmaps and of strokes, stored in the same order. Shared."""
    return of_content(request.param)


@pytest.fixture
def remote(store: Store, dataset: Dataset) -> Store:
    """A store with the small dataset at `URL`; requests are counted from now on."""
    store.upload(dataset.folder, URL)
    store.requests.clear()
    return store


@pytest.fixture(scope="session")
def of_layout(
    of_content: Callable[[str], Dataset], make_dataset: DatasetMaker
) -> Callable[..., Dataset]:
    """The small dataset in each of the three layouts, of bitmaps unless another content is given,
    made once. Shared: copy before writing."""

    @cache
    def get(layout: str, content: str = "bitmaps") -> Dataset:
        if layout == "gzip":
            return of_content(content)
        return make_dataset(content=content, **LAYOUTS[layout])

    return get


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Dataset], Dataset]:
    """Copies a dataset's folder for a test that damages it; the source stays the shared one."""

    def copy(original: Dataset) -> Dataset:
        folder = str(tmp_path / "dataset")
        shutil.copytree(original.folder, folder)
        return replace(original, folder=folder)

    return copy


@pytest.fixture
def own(dataset: Dataset, copy_of: Callable[[Dataset], Dataset]) -> Dataset:
    """A copy of the small dataset for this test alone."""
    return copy_of(dataset)


@pytest.fixture
def own_source(own: Dataset, tmp_path: Path) -> Dataset:
    """A copy of the small dataset, and of the files it was made from, for this test alone."""
    source = tmp_path / "source"
    shutil.copytree(own.source.url, source)
    content = own.source.content
    return replace(own, source=open_source(str(source), content=content))


@pytest.fixture(scope="session")
def plan_of() -> Callable[[Dataset], Plan]:
    """The plan that a dataset was built by."""
    return lambda made: Plan(made.manifest.classes, made.source.counts, made.manifest.settings)
