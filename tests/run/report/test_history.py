"""A run's history as metrics.jsonl has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.run.folder import LOG
from quickdraw_dist.run.report import history

START = {"kind": "start", "time": 1.0, "epoch": 0.0, "step": 0}
AGAIN = {"kind": "start", "time": 3.0, "epoch": 0.5, "step": 5}


def train(epoch: float, loss: float | None, seconds: int) -> dict[str, object]:
    position = {"kind": "train", "time": 2.0, "epoch": epoch, "step": int(10 * epoch)}
    return position | {"loss": loss, "goodput_seconds": {"train": seconds}}


VALIDATION = {"kind": "validation", "epoch": 1.0, "step": 10, "loss": 1.5, "top1": 0.75}
RECORDS = (START, train(0.5, 2.0, 1), AGAIN, train(0.7, None, 2), train(1.0, 1.0, 3), VALIDATION)
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)


def write(folder: Path, text: str) -> history.History:
    (folder / LOG).write_text(text)
    return history.read(str(folder))


def test_curves_restarts_and_time(tmp_path: Path) -> None:
    """An interval of skipped steps only has no point; only the later starts are restarts."""
    run = write(tmp_path, LINES)
    assert run.curve("train", "loss") == ([0.5, 1.0], [2.0, 1.0])
    assert run.curve("validation", "top1") == ([1.0], [0.75])
    assert run.curve("validation", "top5") == ([], [])
    assert run.restarts == [0.5]
    assert run.goodput_seconds == {"train": 3}
    assert not run.finished


def test_nothing_to_measure(tmp_path: Path) -> None:
    """A validation of no drawings, which earlier releases logged, is none."""
    run = write(tmp_path, LINES + json.dumps(VALIDATION | {"epoch": 2.0, "drawings": 0, "top1": 0}))
    assert run.curve("validation", "top1") == ([1.0], [0.75])


def test_a_run_that_is_running(tmp_path: Path) -> None:
    """The line that is being written is skipped."""
    assert write(tmp_path, LINES[:-30]).records == write(tmp_path, LINES).records[:-1]


def test_finished(tmp_path: Path) -> None:
    """By its last line; a run that was resumed for more epochs is not finished."""
    end = (
        json.dumps({"kind": "end", "step": 10, "epoch": 1.0, "goodput_seconds": {"train": 4}})
        + "\n"
    )
    run = write(tmp_path, LINES + end)
    assert run.finished and run.goodput_seconds == {"train": 4}
    assert not write(tmp_path, LINES + end + json.dumps(AGAIN)).finished


@pytest.mark.parametrize("text", [None, "", "half a li"])
def test_no_run(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / LOG).write_text(text)
    with pytest.raises(RefusedError, match=r"no metrics\.jsonl with a record there"):
        history.read(str(tmp_path))
