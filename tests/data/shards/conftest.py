"""Fixtures of the tests of shards: datasets that may be damaged, and folders as bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from quickdraw_dist.data.drawings.sources import open_source
from quickdraw_dist.data.shards import writer
from quickdraw_dist.data.shards.manifest import Manifest
from quickdraw_dist.data.shards.plan import Plan

if TYPE_CHECKING:
    from tests.support.datasets import Dataset

LAYOUTS = {
    "gzip": {},
    "none": {"compression": "none"},
    "per_drawing": {"layout": "per_drawing"},
}


@pytest.fixture(scope="session")
def of_layout(dataset: Dataset, make_dataset: Callable[..., Dataset]) -> Callable[[str], Dataset]:
    """The small dataset in each of the three layouts, made once. Shared: copy before writing."""
    made = {"gzip": dataset}

    def get(layout: str) -> Dataset:
        if layout not in made:
            made[layout] = make_dataset(**LAYOUTS[layout])
        return made[layout]

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
    return replace(own, source=open_source(str(source)))


@pytest.fixture(scope="session")
def plan_of() -> Callable[[Dataset], Plan]:
    """The plan that a dataset was built by."""
    return lambda made: Plan(made.manifest.classes, made.source.counts, made.manifest.settings)


@pytest.fixture(scope="session")
def tree() -> Callable[[str | Path], dict[str, bytes]]:
    """Every file below a folder, hidden ones included, by its path."""

    def read(folder: str | Path) -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in Path(folder).rglob("*")
            if path.is_file()
        }

    return read


@pytest.fixture(scope="session")
def go_on() -> Callable[..., tuple[list[int], Manifest]]:
    """What the same command does again: builds the groups that are missing, then merges."""

    def run(made: Dataset, dest: str | Path, processes: int = 1) -> tuple[list[int], Manifest]:
        plan = Plan(made.manifest.classes, made.source.counts, made.manifest.settings)
        done = writer.finished_parts(plan, str(dest))
        missing = [group for group in range(plan.groups) if group not in done]
        writer.build(plan, missing, made.source, str(dest), processes, lambda _: None)
        merged = writer.merge_if_complete(plan, made.source, str(dest))
        assert merged is not None
        return missing, merged

    return run
