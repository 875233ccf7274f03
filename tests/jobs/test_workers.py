"""Workers of jobs.shard: numbered by flags or a scheduler, and merged by the last or by --merge."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from jobs import evaluate, plan, report, shard, verify
from jobs.command import worker_share
from quickdraw_dist.base.errors import RefusedError
from tests.jobs.conftest import GROUPS, parts, tree

if TYPE_CHECKING:
    from tests.support.data.datasets import Dataset

SLURM = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "3"}


def task(number: int, *array: int) -> dict[str, str]:
    """Slurm's variables in one task of an array."""
    numbers = {"ID": number, "COUNT": len(array), "MIN": min(array), "MAX": max(array)}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in numbers.items()}


@pytest.mark.parametrize(
    ("environment", "flags", "expected"),
    [
        ({}, (None, None), (0, 1)),
        ({}, (None, 3), (0, 3)),
        ({}, (2, 3), (2, 3)),
        (SLURM, (None, None), (1, 3)),
        (SLURM, (None, 2), (1, 2)),
        (SLURM, (3, 4), (3, 4)),
        (task(2, 0, 1, 2), (None, None), (2, 3)),
        (task(8, *range(1, 9)), (None, None), (7, 8)),  # counted from 1
        (task(10, 0, 5, 10, 15), (None, None), (2, 4)),  # with a step
        (task(7, 3, 7), (None, None), (1, 2)),  # some tasks again: the rest is divided among them
        (task(5, 5), (None, None), (0, 1)),
        (task(7, 3, 7), (None, 8), (7, 8)),  # ... or as in the first array
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
        ({"JOB_COMPLETION_INDEX": "4"}, (None, 4), "JOB_COMPLETION_INDEX"),
        ({"JOB_COMPLETION_INDEX": "²"}, (None, 4), "JOB_COMPLETION_INDEX"),
        (task(8, *range(1, 9)), (None, 8), "SLURM_ARRAY_TASK_ID"),
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


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "x"])
def test_a_number_of_processes_is_checked(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        shard.main(["--processes", number])
    assert end.value.code == 2
    assert f"--processes: {number}: should be a" in capsys.readouterr().err


def test_every_job_suggests_the_nearest_argument(capsys: pytest.CaptureFixture[str]) -> None:
    """Those without settings, too."""
    for main, argv, wrong, nearest in (
        (report.main, ["run", "--hlep"], "--hlep", "--help"),
        (shard.main, ["--proceses"], "--proceses", "--processes"),
    ):
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == 2
        assert f"unknown argument {wrong}. Did you mean '{nearest}'" in capsys.readouterr().err


def test_tasks_at_unequal_distances_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their variables do not tell which one of them a task is: at least one says what to do, in
    the array's words, and none takes another one's share."""
    for array in ([3, 4, 7], [0, 1, 2, 8], [0, 1, 8]):
        shares, refused = [], []
        for number in array:
            for name, value in task(number, *array).items():
                monkeypatch.setenv(name, value)
            try:
                shares.append(worker_share(None, None))
            except RefusedError as error:
                refused.append(error)
        assert refused and len(set(shares)) == len(shares)
        assert refused[0].subject == "SLURM_ARRAY_TASK_ID" and refused[0].count == len(array)
        assert "sbatch --array" in refused[0].remedy and "--of N" in refused[0].remedy


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


@pytest.mark.parametrize(
    "job", [shard, verify, plan, evaluate, report], ids=lambda job: job.__name__
)
def test_addresses_as_typed(job: ModuleType) -> None:
    """Every address that a job takes."""
    flags = {shard: ["--source", "--dest"], verify: ["", "--source"], plan: ["--source", "--data"],
             evaluate: ["--checkpoint", "--report"], report: [""]}[job]  # fmt: skip
    for flag in flags:
        with pytest.raises(RefusedError) as caught:
            job.main([flag, "gs:/b/x"] if flag else ["gs:/b/x"])
        assert caught.value.remedy == "Give gs://b/x"
