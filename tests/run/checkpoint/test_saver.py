"""Saving while training continues: the state at the save, one at a time, failures survived."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import TrainingError
from quickdraw_dist.base.settings import Checkpoint, Model, Settings, Train
from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.base.telemetry.phases import Phases
from quickdraw_dist.data.order.digest import OrderDigest
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.run.checkpoint import files
from quickdraw_dist.run.checkpoint.saver import Saver
from quickdraw_dist.run.folder import RunFolder
from quickdraw_dist.run.position import Position
from quickdraw_dist.run.progress import ProgressLog
from quickdraw_dist.training.learner import Learner

BATCH, EPOCH_STEPS = 8, 100
CARRIED = {"validation": None, "skipped_steps": 0}


def count(digest: OrderDigest, step: int) -> None:
    """Add a step's drawings, which are only numbers here."""
    labels, rows = torch.zeros(BATCH, dtype=torch.int64), np.full(BATCH, step, np.uint32)
    digest.add(0, step * BATCH, labels, rows)


class Run:
    """One rank with a small network that takes real steps, a folder and a saver."""

    def __init__(self, output: Path) -> None:
        train = Train(global_batch=BATCH, device="cpu", deterministic=False)
        self.settings = Settings(output=str(output), model=Model(width=2), train=train)
        dataset: Any = SimpleNamespace(
            classes=("cat", "dog"),
            content="bitmaps",
            digest="d1" * 32,
            pixel_mean=0.2,
            pixel_std=0.3,
        )
        feed: Any = SimpleNamespace(lanes=8, drawings=800, dataset=dataset)
        world = World(0, 1, 0, 1, torch.device("cpu"))
        self.learner = Learner(self.settings, world, dataset, 10_000)
        self.folder = RunFolder(str(output))
        phases = Phases()
        log = ProgressLog(phases, self.folder, self.settings.metrics)
        state = self.learner.checkpoint_state
        self.saver = Saver(self.settings, feed, state, log, phases, self.folder)
        self.steps = 0

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            drawings = torch.randint(0, 255, (BATCH, 28, 28), dtype=torch.uint8)
            self.learner.step(drawings, torch.zeros(BATCH, dtype=torch.int64), self.steps)
            self.steps += 1
            count(self.saver.order_digest, self.steps)

    @property
    def position(self) -> Position:
        return Position(0, 1, self.steps, EPOCH_STEPS, self.steps, BATCH)

    def save(self, wait_for_previous: bool = False) -> None:
        self.saver.save(self.position, CARRIED, wait_for_previous)

    def save_final(self) -> None:
        self.saver.save_final(self.position, CARRIED)

    def state(self) -> dict[str, Any]:
        """Return a deep copy of everything that a checkpoint must restore."""
        return copy.deepcopy(self.learner.checkpoint_state())

    def saved_steps(self) -> list[int]:
        return files.steps(self.settings.output)

    def close(self) -> None:
        self.saver.close()
        self.folder.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    started = Run(tmp_path)
    yield started
    started.close()


class Gate:
    """Blocks every write of a file until `opened`; `reached` is set when one is waiting."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        publish = storage.publish

        def held(url: str, data: bytes) -> None:
            self.reached.set()
            self.opened.wait()
            publish(url, data)

        patch.setattr(storage, "publish", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A disk that blocks until the test opens it."""
    slow = Gate(monkeypatch)
    yield slow
    slow.opened.set()


def value(metric: Any) -> float:
    return float(metric._value.get())


def test_a_checkpoint_has_the_state_at_the_save(run: Run, gate: Gate) -> None:
    """Training continues while it is written: weights, average, optimizer, position and order
    digest are those of the step that saved, bit for bit."""
    run.train(3)
    before = run.state()
    run.save()
    gate.reached.wait()
    run.train(4)
    gate.opened.set()
    run.saver.close()
    saved = files.newest(run.settings.output)
    assert saved is not None
    after = {"weights": saved.weights, "average": saved.average, "state": saved.state}
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(run.state(), before, rtol=0, atol=0)
    meta = saved.meta
    assert (meta["step"], meta["step_in_epoch"], meta["drawings"]) == (3, 3, 3 * BATCH)
    digest = OrderDigest()
    for step in (1, 2, 3):
        count(digest, step)
    assert meta["order_digest"] == digest.total()()


def test_one_at_a_time(run: Run, gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    """A save while another one is being written is skipped, reported and counted: training does
    not wait. With wait_for_previous, as after an epoch's validation, it waits and is complete."""
    before = value(metrics.CHECKPOINTS_SKIPPED)
    run.train()
    run.save()
    gate.reached.wait()
    run.train()
    run.save()
    assert "checkpoint skipped at step 2" in capsys.readouterr().out
    assert value(metrics.CHECKPOINTS_SKIPPED) == before + 1
    run.train()
    threading.Timer(0.05, gate.opened.set).start()
    run.save(wait_for_previous=True)
    assert gate.opened.is_set()
    run.saver.close()
    assert run.saved_steps() == [1, 3]
    for step in (1, 3):
        files.load(str(Path(files.folder(run.settings.output), files.name(step))))


def no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_failures_are_survived(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five in a row that cannot be written: each is reported and counted, training continues, the
    previous one is intact, and the next that can be written is complete."""
    failures = value(metrics.CHECKPOINT_FAILURES)
    run.train()
    run.save_final()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "publish", no_room)
        for _ in range(5):
            run.train()
            run.save(wait_for_previous=True)
        run.train()
        with pytest.raises(TrainingError) as ended:
            run.save_final()
    printed = capsys.readouterr().out
    failed = [step for step in range(1, 8) if f"checkpoint FAILED at step {step}:" in printed]
    assert failed == [2, 3, 4, 5, 6, 7]
    assert value(metrics.CHECKPOINT_FAILURES) == failures + 6
    for word in (
        "--output",
        "last checkpoint",
        "No space left on device",
        "previous one is intact",
    ):
        assert word in str(ended.value)
    newest = files.newest(run.settings.output)
    assert newest is not None and newest.meta["step"] == 1
    run.save_final()
    newest = files.newest(run.settings.output)
    assert newest is not None and newest.meta["step"] == 7


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weights", "average"])
def test_nan_and_inf_are_never_saved(
    run: Run, where: str, bad: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a checkpoint would replace the last good one; the tensor is named."""
    run.train()
    run.save(wait_for_previous=True)
    run.train()
    assert run.learner.average is not None
    tensors = run.learner.model.state_dict() if where == "weights" else run.learner.average.state
    name = next(iter(tensors))
    tensors[name].flatten()[1] = bad
    run.save(wait_for_previous=True)
    run.saver.close()
    assert f"FAILED at step 2: {where} of {name} contain NaN or inf" in capsys.readouterr().out
    assert run.saved_steps() == [1]


def test_other_errors_are_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in the thread ends the run with its traceback at the next save."""
    monkeypatch.setattr(files, "versions", lambda: 1 / 0)
    run.train()
    run.save()
    with pytest.raises(ZeroDivisionError):
        run.save_final()


def test_the_same_step_is_not_written_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal right after a save, or before the first step of a resumed run: overwriting the only
    good checkpoint would damage it if the process is killed meanwhile."""
    run.train()
    run.save(wait_for_previous=True)
    run.save_final()
    again = Run(Path(run.settings.output, "again"))
    again.steps = 5
    again.saver.resume("00", again.position, CARRIED)
    again.save_final()
    again.close()
    monkeypatch.setattr(storage, "publish", no_room)
    run.save_final()
    assert again.saved_steps() == []


def test_old_ones_that_cannot_be_removed(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The new checkpoint is complete: it is no failure, and only reported."""
    failures = value(metrics.CHECKPOINT_FAILURES)
    monkeypatch.setattr(storage, "remove_folder", no_room)
    for _ in range(Checkpoint().keep_last + 1):
        run.train()
        run.save(wait_for_previous=True)
    run.save_final()
    assert "could not be removed: [Errno 28]" in capsys.readouterr().out
    assert value(metrics.CHECKPOINT_FAILURES) == failures
    assert run.saved_steps() == [1, 2, 3]


def test_pauses_are_measured_and_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Every pause is in the histogram, their median in a line at the end; the final save, which all
    ranks wait for, does not count."""
    count = metrics.CHECKPOINT_PAUSE_SECONDS._sum.get()
    for _ in range(3):
        run.train()
        run.save(wait_for_previous=True)
    run.train()
    run.save_final()
    assert len(run.saver.pauses_seconds) == 3
    total = metrics.CHECKPOINT_PAUSE_SECONDS._sum.get() - count
    assert total == pytest.approx(sum(run.saver.pauses_seconds))
    assert "checkpoints: 3 in the background, training paused " in capsys.readouterr().out
