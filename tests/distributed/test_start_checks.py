"""Ranks that do not mean the same run are told before any work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.base.errors import CorruptError, RefusedError, StorageError
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.distributed import start_checks
from quickdraw_dist.distributed.ranks import from_first_rank
from quickdraw_dist.distributed.start_checks import check_same, first_difference, spell
from tests.support.processes.ranks import run_ranks


@pytest.mark.parametrize(
    ("ranks", "words"),
    [([3], "rank 3"), ([0, 1], "ranks 0-1"), ([0, 2, 3, 4, 7], "ranks 0, 2-4, 7")],
)
def test_spell(ranks: list[int], words: str) -> None:
    """Runs are named by their ends: a message about 512 ranks stays a line."""
    assert spell(ranks) == words


@given(st.sets(st.integers(0, 40), min_size=1))
def test_spell_names_exactly_the_ranks(ranks: set[int]) -> None:
    """Read back, the words are the ranks."""
    named: set[int] = set()
    for run in spell(sorted(ranks)).split(" ", 1)[1].split(", "):
        first, _, last = run.partition("-")
        named |= set(range(int(first), int(last or first) + 1))
    assert named == ranks


def test_first_difference() -> None:
    """In the order of the facts; one that a rank does not know is a difference, too."""
    same = {"a": "1", "b": "2"}
    assert first_difference([same, same, same]) is None
    assert first_difference([same, same | {"b": "3"}, same]) == "b is 2 on ranks 0, 2, 3 on rank 1"
    other = {"a": "0", "b": "3"}
    assert first_difference([same, other, other]) == "a is 1 on rank 0, 0 on ranks 1-2"
    assert first_difference([{"a": "1"}, same]) == "b is unknown on rank 0, 2 on rank 1"


def test_code_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any changed or moved line of any module is another version; a copy elsewhere is the same."""
    source = Path(start_checks.__file__).parents[1]
    copy = tmp_path / "quickdraw_dist"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    ours = start_checks.code_version()
    monkeypatch.setattr(start_checks, "__file__", str(copy / "distributed" / "start_checks.py"))
    assert start_checks.code_version() == ours
    with (copy / "models" / "__init__.py").open("a") as file:
        file.write("#\n")
    assert start_checks.code_version() != ours


# -- real ranks ------------------------------------------------------------------------------------


def run_rank(rank: int, _: int, task: Callable[[int, str], None], folder: str) -> str:
    """What a rank's task raised, if anything."""
    try:
        task(rank, folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def said_by_ranks(
    processes: ForkServerContext, folder: Path, size: int, task: Callable[[int, str], None]
) -> list[str]:
    """What every rank raised."""
    return run_ranks(processes, size, folder, run_rank, task, str(folder))


def compare(rank: int, folder: str) -> None:
    """Rank 1 has another seed; where the data lie and the port are each rank's own."""
    own: dict[str, Any] = {"data": f"{folder}/{rank}", "metrics": {"port": 9400 + rank}}
    check_same(Settings(**own), "digest")
    check_same(Settings(train={"seed": 7 if rank == 1 else 1}), "digest")


def compare_datasets(rank: int, _: str) -> None:
    """Rank 2 opened another dataset."""
    check_same(Settings(), "other" if rank == 2 else "digest")


ERRORS = [
    RefusedError("no"), CorruptError("bytes"), StorageError("gone"), PermissionError(13, "no", "x")
]  # fmt: skip


def fail(rank: int, folder: str) -> None:
    """Every kind of trouble that the first rank may meet while the others wait for its word."""
    for error in ERRORS:

        def make(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            from_first_rank(make)
        assert type(caught.value) is type(error) and str(caught.value) == str(error)


def test_ranks_with_other_settings_are_refused(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    """On every rank, so that each node's log says it: a run of two seeds would train on garbage."""
    for said in said_by_ranks(processes, tmp_path, 2, compare):
        assert said.startswith("RefusedError: ranks disagree: --train.seed is 1 on rank 0, 7")


def test_ranks_with_other_data_are_refused(processes: ForkServerContext, tmp_path: Path) -> None:
    """The path may be the same: a node's copy may be an old one."""
    for said in said_by_ranks(processes, tmp_path, 3, compare_datasets):
        assert "the dataset's digest is digest on ranks 0-1, other on rank 2" in said


def test_the_first_ranks_trouble_is_everybodys(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    """Ranks that are not told wait for the first one's word until their timeout."""
    assert said_by_ranks(processes, tmp_path, 2, fail) == ["nothing"] * 2
