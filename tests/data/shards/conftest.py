"""Fixtures of the tests of shards: folders as bytes, and a build that is continued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quickdraw_dist.data.shards import writer
from quickdraw_dist.data.shards.plan import Plan
from quickdraw_dist.data.shards.schema import Manifest
from tests.support.data.datasets import Dataset


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
        done = writer.finished_groups(plan, str(dest))
        missing = [group for group in range(plan.groups) if group not in done]
        writer.build(plan, missing, made.source, str(dest), processes, lambda _: None)
        merged = writer.merge_if_complete(plan, made.source, str(dest))
        assert merged is not None
        return missing, merged

    return run
