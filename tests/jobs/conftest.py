"""Commands on a small dataset, outside of any scheduler."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobs import command

if TYPE_CHECKING:
    from tests.support.data.datasets import Dataset

ROOT = Path(__file__).resolve().parents[2]
SIZES = ["--shard.drawings_per_shard", "320", "--shard.block", "32", "--shard.group_shards", "2"]
GROUPS = 4  # of the small dataset, with these sizes
OUTSIDE = ("JOB_COMPLETION_INDEX", "SLURM_", "QUICKDRAW_")
"""Prefixes of the variables that a scheduler or a shell sets."""


@pytest.fixture(autouse=True)
def _no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may themselves run under Slurm or Kubernetes."""
    for name in [name for name in os.environ if name.startswith(OUTSIDE)]:
        monkeypatch.delenv(name)


@pytest.fixture
def arguments(dataset: Dataset, tmp_path: Path) -> list[str]:
    """The arguments of jobs.shard that make the small dataset again, in tmp_path/dataset."""
    dest = str(tmp_path / "dataset")
    content = ["--shard.content", dataset.source.content]
    return ["--source", dataset.source.url, "--dest", dest, "--processes", "1", *SIZES, *content]


def tree(folder: str | Path) -> dict[str, bytes]:
    """Every file below a folder by its path, but for the record indices of its source."""
    paths = [p for p in Path(folder).rglob("*") if p.is_file() and p.suffix != ".records"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def parts(folder: Path) -> list[int]:
    """The groups whose part files exist."""
    return sorted(int(path.stem[-6:]) for path in folder.glob("parts/*.json"))


def refused(
    main: Callable[[list[str]], None], argv: list[str], capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """Run a job as a process does; it must exit with 2. Returns what it prints as its error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        command.run(partial(main, argv))
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    error = printed[max(printed.find("error: "), 0) :].removeprefix("error: ")  # after a bar
    return [line.strip() for line in error.splitlines() if not line.startswith("See python -m ")]
