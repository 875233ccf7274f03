"""The smoke step: its cases, and what passes for one that worked."""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path

import pytest

from benchmarks.gpu.smoke.__main__ import summary
from benchmarks.gpu.smoke.cases import MODES, PRECISIONS, Case, cases
from benchmarks.gpu.smoke.checks import FAILED, NO_TIME, PASSED, Bench, run_case
from benchmarks.measure import Metrics
from quickdraw_dist.base.settings import Settings
from tests.support.data.datasets import Dataset

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")


@pytest.mark.parametrize("on_gpu", [True, False])
def test_cases_are_valid_and_differ(on_gpu: bool) -> None:
    found = cases(on_gpu)
    assert len({case.name for case in found}) == len(found)
    for case in found:
        tree: dict[str, dict[str, object]] = {}
        for name, value in case.settings.items():
            section, leaf = name.split(".")
            tree.setdefault(section, {})[leaf] = value
        Settings(**tree)  # type: ignore[arg-type]
    kinds = {case.kind for case in found}
    assert kinds == {"train", "joined", "launched", "resumed", "evaluated"}


def test_a_gpu_tries_every_pair_and_the_slowest_last() -> None:
    found = [case.name for case in cases(on_gpu=True)]
    assert {f"{precision}, {mode}" for precision, mode in product(PRECISIONS, MODES)} < set(found)
    assert [name for name in found if "max-autotune" in name] == found[-3:]


def bench(dataset: Dataset, folder: Path, seconds: float = 600) -> Bench:
    (folder / "bitmaps").symlink_to(dataset.folder)
    return Bench(folder, 64, 2, time.monotonic() + seconds, 1)


@pytest.mark.slow
def test_a_case_that_passes(dataset: Dataset, tmp_path: Path) -> None:
    """One rank in a process group trains as the only one does."""
    here = bench(dataset, tmp_path)
    settings = {"train.device": "cpu", "train.deterministic": True}
    joined = run_case(Case("joined, off", "joined", settings), here)
    alone = run_case(Case("alone", settings=settings), here)
    assert joined["status"] == alone["status"] == PASSED, joined
    assert joined["steps"] == alone["steps"] > 20
    assert joined["loss"] == pytest.approx(alone["loss"], rel=1e-3)
    assert "one rank with gloo" in (tmp_path / "logs" / "joined--off.log").read_text()


def test_a_case_that_fails(dataset: Dataset, tmp_path: Path) -> None:
    result = run_case(Case("odd", settings={"train.device": "tpu"}), bench(dataset, tmp_path))
    assert (result["status"], result["reason"]) == (FAILED, "exit code 2")
    assert "--train.device tpu" in result["tail"]


def test_a_case_without_time(dataset: Dataset, tmp_path: Path) -> None:
    result = run_case(Case("late"), bench(dataset, tmp_path, seconds=-1))
    assert (result["status"], result["reason"]) == (NO_TIME, "not started")


@pytest.mark.slow
def test_stopped_and_resumed(dataset: Dataset, tmp_path: Path) -> None:
    settings = {"train.device": "cpu"}
    result = run_case(Case("resumed", "resumed", settings), bench(dataset, tmp_path))
    assert result["status"] == PASSED, result
    assert 0 < result["stopped_at_step"] < result["steps"]


def test_the_summary_names_what_did_not_pass() -> None:
    todo = [Case("one"), Case("two"), Case("three")]
    good: Metrics = {"status": PASSED}
    found = summary(todo, {"three": good, "one": {"status": FAILED}})
    assert list(found["cases"]) == ["one", "two", "three"]
    assert found["problem"] == "2 of 3 cases did not pass: one (failed), two (running)"
    assert summary(todo, dict.fromkeys(["one", "two", "three"], good))["problem"] == ""
