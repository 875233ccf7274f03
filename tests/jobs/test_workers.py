"""Workers of jobs.shard: numbered by flags or a scheduler, and merged by the last or by --merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobs import shard
from jobs.command import worker_share
from quickdraw_dist.base.errors import RefusedError
from tests.jobs.conftest import GROUPS, parts, tree

if TYPE_CHECKING:
    from tests.support.data.datasets import Dataset

SLURM = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "3"}


@pytest.mark.parametrize(
    ("environment", "flags", "expected"),
    [
        ({}, (None, None), (0, 1)),
        ({}, (None, 3), (0, 3)),
        ({}, (2, 3), (2, 3)),
        (SLURM, (None, None), (1, 3)),
        (SLURM, (None, 2), (1, 2)),
        (SLURM, (3, 4), (3, 4)),
        ({"JOB_COMPLETION_INDEX": "2"}, (None, 3), (2, 3)),
        ({"JOB_COMPLETION_INDEX": "0"}, (1, 3), (1, 3)),
    ],
    ids=str,
)
def test_worker_share(
    environment: dict[str, str],
    flags: tuple[int | None, int | None],
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every pod and every array task runs the same command; flags override the scheduler."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert worker_share(*flags) == expected


@pytest.mark.parametrize(
    ("environment", "flags", "subject"),
    [
        ({}, (3, 3), "--worker"),
        ({}, (-1, 3), "--worker"),
        ({}, (1, None), "--worker"),
        ({}, (None, 0), "--of"),
        ({"JOB_COMPLETION_INDEX": "0"}, (None, None), "JOB_COMPLETION_INDEX"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, (None, None), "SLURM_ARRAY_TASK_ID"),
        (SLURM | {"SLURM_ARRAY_TASK_ID": "1-2"}, (None, None), "SLURM_ARRAY_TASK_ID"),
    ],
    ids=str,
)
def test_worker_shares_that_are_refused(
    environment: dict[str, str],
    flags: tuple[int | None, int | None],
    subject: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as a wrapper that passes on one variable of two."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RefusedError) as caught:
        worker_share(*flags)
    assert caught.value.subject == subject


def test_workers_share_the_groups(
    dataset: Dataset, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three workers, of which the last one merges, make the dataset that one worker makes."""
    folder = tmp_path / "dataset"
    expected = {2: [2], 0: [0, 2, 3], 1: [0, 1, 2, 3]}
    for worker, done in expected.items():
        shard.main([*arguments, "--worker", str(worker), "--of", "3"])
        assert parts(folder) == done
        last = capsys.readouterr().out.splitlines()[-1]
        if worker == 1:
            assert "manifest.json: complete" in last
        else:
            missing = [group for group in range(GROUPS) if group not in done]
            assert f"{len(missing)} of 4 groups are not done yet, the first {missing[0]}" in last
            assert not (folder / "manifest.json").exists()
    assert tree(folder) == tree(dataset.folder)


def test_merge_refuses_what_is_incomplete(
    dataset: Dataset, arguments: list[str], tmp_path: Path
) -> None:
    """--merge builds nothing: it reports how many groups are missing, and merges when none is."""
    folder = tmp_path / "dataset"
    with pytest.raises(RefusedError) as caught:
        shard.main([*arguments, "--merge"])
    assert caught.value.subject == str(folder)
    assert caught.value.problem == "4 of 4 groups are not done yet, the first 0"
    shard.main([*arguments, "--worker", "0", "--of", "2"])
    with pytest.raises(RefusedError, match="2 of 4 groups are not done yet, the first 1"):
        shard.main([*arguments, "--merge"])
    assert parts(folder) == [0, 2]
    assert not (folder / "manifest.json").exists()
    shard.main([*arguments, "--worker", "1", "--of", "2"])
    (folder / "manifest.json").unlink()
    shard.main([*arguments, "--merge"])
    assert tree(folder) == tree(dataset.folder)
