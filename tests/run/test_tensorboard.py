"""Event files: what TensorBoard itself reads from them, also after a restart."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.run import tensorboard
from quickdraw_dist.run.tensorboard import EventFile


def record(step: int, loss: float | None) -> dict[str, object]:
    position = {"kind": "train", "time": 1000.0 + step, "step": step, "drawings": 10 * step}
    return position | {"epoch": 0.5, "loss": loss, "goodput_seconds": {"train": 1.0}}


def points(run: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Return step, time and value of every point that TensorBoard would draw, by curve."""
    events = EventAccumulator(str(run / tensorboard.FOLDER))
    events.Reload()
    return {
        tag: [(e.step, e.wall_time, e.value) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_curves(tmp_path: Path) -> None:
    """Floating-point values become curves, by kind; positions, counts, texts and null do not."""
    events = EventFile(str(tmp_path), 0)
    events.add(record(1, 2.5))
    events.add(record(2, None))
    events.add({"kind": "validation", "split": "val", "top1": 0.75, "step": 2, "time": 1002.0})
    events.close()
    assert points(tmp_path) == {
        "train/loss": [(1, 1001.0, 2.5)],
        "validation/top1": [(2, 1002.0, 0.75)],
    }


def test_no_point_appears_twice_after_a_restart(tmp_path: Path) -> None:
    """Steps after the checkpoint were repeated; their first points are not shown."""
    for first, loss in ((0, 2.0), (3, 1.0)):
        events = EventFile(str(tmp_path), first)
        for step in range(first + 1, 7):
            events.add(record(step, loss))
        events.close()
    losses = [(step, loss) for step, _, loss in points(tmp_path)["train/loss"]]
    assert losses == [(1, 2.0), (2, 2.0), (3, 2.0), (4, 1.0), (5, 1.0), (6, 1.0)]


def test_data_loss_event_files_stay(tmp_path: Path) -> None:
    """Every process has a file of its own; what is not shown any more is still there."""
    for _ in range(2):
        events = EventFile(str(tmp_path), 0)
        events.add(record(1, 2.5))
        events.close()
    assert len(list((tmp_path / tensorboard.FOLDER).iterdir())) == 2


def test_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install, or what else has the metrics; and only where it is asked for."""
    wanted = {"metrics": {"tensorboard": True}}
    tensorboard.check(Settings.model_validate(wanted))
    with pytest.raises(RefusedError) as refused:
        tensorboard.check(Settings.model_validate(wanted | {"output": "gs://bucket/run"}))
    assert "--output is gs://bucket/run" in refused.value.problem
    monkeypatch.setattr(tensorboard, "find_spec", lambda _: None)
    assert importlib.util.find_spec("tensorboard") is not None
    with pytest.raises(RefusedError) as refused:
        tensorboard.check(Settings.model_validate(wanted))
    assert "pip install 'quickdraw-dist[tensorboard]'" in refused.value.remedy
    tensorboard.check(Settings())
