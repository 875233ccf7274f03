"""Skipped steps: told from the scaler's search, counted, written to files; too many end the run."""

from __future__ import annotations

import json
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.base.errors import TrainingError
from quickdraw_dist.base.settings import Settings, Train
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.training.faults import FaultLog, find_faults, longest_streak
from quickdraw_dist.training.tally import StepMetrics

CLASSES = ("cat", "The Eiffel Tower", "sun")


def step_metrics(*losses_and_norms: tuple[float, float]) -> StepMetrics:
    """Metrics of steps on a single rank."""
    losses = [loss for loss, _ in losses_and_norms]
    return StepMetrics(losses, losses, [0.0] * len(losses), [norm for _, norm in losses_and_norms])


# -- decisions -------------------------------------------------------------------------------------

STEPS = step_metrics((2.0, 1.0), (nan, nan), (2.0, inf), (2.0, nan), (2.0, 0.5))


def test_every_skipped_step_is_a_fault_without_a_loss_scale() -> None:
    """bf16 and fp32 have no loss scale to search for."""
    assert find_faults(STEPS, None) == [1, 2, 3]


def test_the_search_for_a_loss_scale_is_no_fault() -> None:
    """fp16: a gradient that overflows under a finite loss halves the scale, down to below 1."""
    assert find_faults(STEPS, 65536.0) == [1]
    assert find_faults(STEPS, 1.0) == [1]
    assert find_faults(STEPS, 0.5) == [1, 2, 3]


@given(st.lists(st.booleans(), max_size=60), st.data())
def test_streaks_continue_over_checks(bad: list[bool], data: st.DataObject) -> None:
    """The length of a streak of faults does not depend on when they are checked."""
    cut = data.draw(st.integers(0, len(bad)))

    def check(some: list[bool], before: int) -> tuple[int, int]:
        return longest_streak([at for at, is_bad in enumerate(some) if is_bad], len(some), before)

    first, carried = check(bad[:cut], 0)
    second, at_end = check(bad[cut:], carried)
    runs = "".join("x" if is_bad else " " for is_bad in bad).split(" ")
    assert max(first, second) == max(map(len, runs))
    assert at_end == len(runs[-1])


# -- the log ---------------------------------------------------------------------------------------


def fault_log(output: Path, max_skipped: int = 3) -> FaultLog:
    """A log on a single rank."""
    settings = Settings(output=str(output), train=Train(max_skipped=max_skipped))
    return FaultLog(settings, World(0, 1, 0, 1, torch.device("cpu")), CLASSES)


def remember(log: FaultLog, *identities: tuple[int, int]) -> None:
    """Record a step's batch and overwrite its memory at once, as the loader does."""
    labels = torch.tensor([label for label, _ in identities])
    rows = np.array([row for _, row in identities], np.uint32)
    log.remember(Batch(0, torch.empty(0), labels, rows))
    labels.fill_(0)
    rows.fill(0)


def test_all_drawings_of_a_skipped_step_are_filed(tmp_path: Path) -> None:
    """The log line names three, the file every one; good steps leave nothing."""
    log = fault_log(tmp_path)
    remember(log, (0, 1), (1, 2))
    remember(log, (2, 7), (1, 8), (2, 3), (0, 4), (2, 5))
    (line,) = log.check(step_metrics((2.0, 1.0), (nan, nan)), next_step=12, loss_scale=None)
    assert "step 11 SKIPPED" in line and "nan on rank 0 of 1" in line
    assert line.endswith("sun 7, The Eiffel Tower 8, sun 3 and 2 more")
    (file,) = tmp_path.rglob("*.json")
    assert file == tmp_path / "skipped" / "step-000000011.json"
    written = json.loads(file.read_text())
    assert written["step"] == 11
    assert written["ranks"] == [
        {
            "rank": 0,
            "loss_sum": "nan",
            "rows_by_class": {"sun": [7, 3, 5], "The Eiffel Tower": [8], "cat": [4]},
        }
    ]
    assert log.count == 1
    remember(log, (1, 9))
    assert log.check(step_metrics((2.0, 1.0)), next_step=13, loss_scale=None) == []
    assert log.count == 1


def test_data_loss_an_earlier_process_skipped_the_same_step(tmp_path: Path) -> None:
    """A resumed run repeats steps: what an earlier process wrote of one stays."""
    for row in (1, 2, 3):
        log = fault_log(tmp_path)
        remember(log, (0, row))
        log.check(step_metrics((nan, nan)), next_step=12, loss_scale=None)
    names = ("step-000000011.json", "step-000000011-2.json", "step-000000011-3.json")
    for row, name in enumerate(names, 1):
        written = json.loads((tmp_path / "skipped" / name).read_text())
        assert written["ranks"][0]["rows_by_class"] == {"cat": [row]}


def test_a_list_that_cannot_be_written_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The identities reach standard error, and training continues."""
    (tmp_path / "run").write_text("a file where the folder should be")
    log = fault_log(tmp_path / "run")
    remember(log, (2, 7))
    assert len(log.check(step_metrics((inf, nan)), next_step=1, loss_scale=None)) == 1
    assert '"rows_by_class": {"sun": [7]}' in capsys.readouterr().err


@pytest.mark.parametrize(("second_check", "ends"), [("xx", True), ("x ", True), (" xx", False)])
def test_too_many_in_a_row_end_the_run(tmp_path: Path, second_check: str, ends: bool) -> None:
    """Three in a row (x) are too many, also over two checks; a good step between them resets."""
    log = fault_log(tmp_path)

    def check(steps: str, next_step: int) -> None:
        for _ in steps:
            remember(log, (0, 1))
        seen = step_metrics(*((nan, nan) if step == "x" else (1.0, 1.0) for step in steps))
        log.check(seen, next_step, loss_scale=None)

    check("xx", 2)
    if not ends:
        check(second_check, 2 + len(second_check))
        return
    with pytest.raises(TrainingError) as ended:
        check(second_check, 2 + len(second_check))
    assert "--train.max_skipped is 3" in str(ended.value)
    assert str(tmp_path / "skipped") in str(ended.value)
    assert log.count == 2 + second_check.count("x")  # each of them is in a file and counted
