"""Progress: durations as people read them, intervals that a restart does not shift, and what is
printed and logged of the loop."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quickdraw_dist.base.settings import Metrics
from quickdraw_dist.base.telemetry import phases as phases_module
from quickdraw_dist.base.telemetry.metrics import REGISTRY
from quickdraw_dist.base.telemetry.phases import Phases
from quickdraw_dist.base.units import duration
from quickdraw_dist.evaluation.metrics import Evaluation
from quickdraw_dist.run.folder import RunFolder
from quickdraw_dist.run.position import Interval, Position, TrainingMetrics
from quickdraw_dist.run.progress import ProgressLog


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599.6, "1:00:00"),
        (3723, "1:02:03"),
        (90_000, "25:00:00"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    """The time left is read at a glance, also where rounding carries into minutes and hours."""
    assert duration(seconds) == text


@settings(deadline=None)
@given(st.integers(0, 10**7))
def test_duration_says_the_seconds(seconds: int) -> None:
    """No duration reads as another one: the text adds up to its seconds, two digits per unit."""
    text = duration(seconds)
    assert re.fullmatch(r"(\d+:[0-5]\d|\d):[0-5]\d|[1-5]\d:[0-5]\d", text)
    worth = 0
    for digits in text.split(":"):
        worth = 60 * worth + int(digits)
    assert worth == seconds


@settings(deadline=None)
@given(
    every=st.integers(1, 500),
    batch=st.integers(1, 300),
    steps=st.integers(1, 60),
    data=st.data(),
)
def test_interval_fires_the_same_after_any_restart(
    every: int, batch: int, steps: int, data: st.DataObject
) -> None:
    """A run that was preempted anywhere evaluates and saves after the same steps as one that was
    not."""
    restart = data.draw(st.integers(0, steps))

    def fired(first: int, last: int) -> list[int]:
        interval = Interval(every)
        return [s for s in range(first, last) if interval.passed(s * batch, (s + 1) * batch)]

    whole = fired(0, steps)
    assert fired(0, restart) + fired(restart, steps) == whole
    # Exactly those steps fire that bring the count to or past a multiple.
    multiples = range(every, steps * batch + 1, every)
    assert whole == sorted({-(-multiple // batch) - 1 for multiple in multiples})


def test_interval_of_zero_never_fires() -> None:
    """evaluation.every_drawings 0 means only at the end of an epoch."""
    assert not any(Interval(0).passed(n, n + 10) for n in range(0, 100, 10))


# -- the log ---------------------------------------------------------------------------------------

MEASURED = TrainingMetrics(loss=1.25, accuracy=0.625, gradient_norm=0.5, learning_rate=1e-3)
DETAILS = {"model": "sketchcnn", "ranks": 2}


def at(total_steps: int) -> Position:
    """A run of two epochs of 50 steps, 10 drawings each."""
    return Position(total_steps // 50, 2, total_steps % 50, 50, total_steps, 10)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(str(tmp_path / "run"))
    yield folder
    folder.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The stopwatch's clock, moved by hand."""
    clock = SimpleNamespace(now=0.0)
    clocks = SimpleNamespace(monotonic=lambda: clock.now, time=lambda: clock.now)
    monkeypatch.setattr(phases_module, "time", clocks)
    return clock


def records(folder: RunFolder) -> list[dict[str, object]]:
    text = Path(folder.url, "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_speed_is_the_loops(
    folder: RunFolder, clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    """20 steps of 10 drawings in 8 s, 2 of them waiting; start, evaluation and checkpoint aside."""
    phases = Phases()
    log = ProgressLog(phases, folder, Metrics())
    clock.now += 100  # starting
    with phases("data wait", 0):
        pass  # training from here on
    log.start(at(0), None, DETAILS)
    clock.now += 6
    with phases("data wait", 0):
        clock.now += 2
    with phases("evaluation", 0):
        clock.now += 1000
    with phases("checkpoint", 0):
        clock.now += 1000
    assert log.new_steps(at(20)) == 20
    log.log_training(at(20), MEASURED)
    assert log.new_steps(at(20)) == 0
    line = capsys.readouterr().out
    assert line == (
        "epoch 1/2  step 20/50  25 drawings/s  loss 1.2500  accuracy 62.5%  data wait 25.0%  "
        "0:32 left\n"
    )
    clock.now += 1  # the next interval has clocks of its own
    log.log_training(at(60), MEASURED)
    assert "epoch 2/2  step 10/50  400 drawings/s" in capsys.readouterr().out
    start, first, second = records(folder)
    assert start == {"kind": "start", "time": 0, "step": 0, "drawings": 0, "epoch": 0} | DETAILS
    assert first | {"time": 0} == {
        "time": 0,
        "kind": "train",
        "step": 20,
        "drawings": 200,
        "epoch": 0.4,
        "loss": 1.25,
        "accuracy": 0.625,
        "gradient_norm": 0.5,
        "learning_rate": 1e-3,
        "drawings_per_second": 25.0,
        "data_wait_share": 0.25,
        "goodput_seconds": {
            "train": 6.0,
            "data_wait": 2.0,
            "compile": 0.0,
            "evaluation": 1000.0,
            "checkpoint": 1000.0,
            "restart": 100.0,
        },
    }
    assert (second["epoch"], second["data_wait_share"]) == (1.2, 0)


@pytest.mark.parametrize(
    ("recognized", "hits", "said"),
    [
        (0, 0, "top-1 75.00%, top-3"),
        (1_400, 300, "top-1 75.00% (21.43% of 1,400 recognised), top-3"),
    ],
)
def test_accuracy_over_recognized_drawings(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], recognized: int, hits: int, said: str
) -> None:
    """With their number, as most drawings may have no verdict; not at all without any."""
    result = Evaluation(
        split="val",
        classes=("cat", "zebra"),
        confusion=np.array([[1_000, 500], [0, 500]]),
        top3_per_class=np.array([1_500, 500]),
        map3=0.9,
        loss=0.5,
        recognized=recognized,
        recognized_hits=hits,
    )
    ProgressLog(Phases(), folder, Metrics()).log_validation(at(20), result)
    assert said in capsys.readouterr().out


def test_other_ranks_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Only rank 0 has a folder; every rank's endpoint has the metrics."""
    steps = REGISTRY.get_sample_value("quickdraw_steps_total") or 0
    drawings = REGISTRY.get_sample_value("quickdraw_drawings_total") or 0
    log = ProgressLog(Phases(), None, Metrics())
    log.start(at(10), None, DETAILS)
    log.log_training(at(13), MEASURED)
    log.finish(at(13))
    assert capsys.readouterr().out == ""
    assert REGISTRY.get_sample_value("quickdraw_steps_total") == steps + 3
    assert REGISTRY.get_sample_value("quickdraw_drawings_total") == drawings + 30
    assert REGISTRY.get_sample_value("quickdraw_epoch") == pytest.approx(0.26)


def write_log(folder: RunFolder, *lines: dict[str, object]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    Path(folder.url, "metrics.jsonl").write_text(text)


def test_resumes_from_a_checkpoint(folder: RunFolder, clock: SimpleNamespace) -> None:
    """The run's counters, and the log without the steps that are repeated."""
    write_log(folder, *({"kind": "train", "step": step, "time": 1.0} for step in (20, 40)))
    names = ("restarts", "steps", "drawings")
    before = [REGISTRY.get_sample_value(f"quickdraw_{name}_total") or 0 for name in names]
    clock.now = 1000
    phases = Phases()
    log = ProgressLog(phases, folder, Metrics())
    saved = {"until": 900.0, "seconds": {"train": 5.0}}
    log.start(at(30), {"step": 30, "restarts": 2, "goodput": saved}, DETAILS)
    assert log.restarts == 3
    after = [REGISTRY.get_sample_value(f"quickdraw_{name}_total") or 0 for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 30, 300]
    assert (phases.seconds["train"], phases.seconds["restart"]) == (5, 100)
    assert [(r["kind"], r["step"]) for r in records(folder)] == [("train", 20), ("start", 30)]


def test_time_lost_before_the_first_checkpoint(folder: RunFolder, clock: SimpleNamespace) -> None:
    """A run that crashed twice before its first checkpoint starts from scratch, and all of that
    time counts as lost to restarts: the log has the first start."""
    write_log(
        folder,
        {"kind": "start", "step": 0, "time": 100.0},
        {"kind": "start", "step": 0, "time": 150.0},
        {"kind": "train", "step": 20, "time": 180.0},
    )
    clock.now = 200
    phases = Phases()
    log = ProgressLog(phases, folder, Metrics())
    log.start(at(0), None, DETAILS)
    assert log.restarts == 2
    assert phases.seconds["restart"] == 100
    assert [record["time"] for record in records(folder)] == [100, 150, 200]
