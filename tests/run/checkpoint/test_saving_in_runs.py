"""Whole runs whose checkpoints meet a full disk, a failing store, SIGKILL or another writer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from quickdraw_dist import train
from quickdraw_dist.base import storage
from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.run import lease
from quickdraw_dist.run.checkpoint import files as checkpoint
from quickdraw_dist.training.learner import Learner
from tests.support import runs
from tests.support.data.datasets import Dataset
from tests.support.gcs.local import Store
from tests.support.gcs.server import Request, Response
from tests.support.processes.system import with_disk_of

pytestmark = pytest.mark.usefixtures("one_thread")

RUN = "gs://bucket/run"
TRAIN = ["--train.global_batch", "96", "--train.device", "cpu", "--train.deterministic", "true"]
TRAIN += ["--model.width", "4", "--metrics.port", "0", "--stream.threads", "1", *runs.NO_PAGE]


def command(dataset: Dataset, output: str, epochs: int, *more: str) -> list[str]:
    """Return arguments of a run with 18 steps per epoch."""
    where = ["--data", dataset.folder, "--output", output]
    return [*where, "--train.epochs", str(epochs), *TRAIN, *more]


def test_a_store_that_fails_until_the_end_of_the_run(
    dataset: Dataset,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Training goes on while checkpoints cannot be written. That the last one is missing is an
    error; when the store works again, the same command resumes from the last one written."""
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    failures = metrics.CHECKPOINT_FAILURES._value.get()

    def refuse(request: Request) -> Response | None:
        name = request.params.get("name", "")
        return Response(503) if "checkpoints/" in name and "step-000000018" not in name else None

    store.intercept = refuse
    assert train.main(command(dataset, RUN, 3)) == 1
    said = capsys.readouterr()
    failed = re.findall(r"checkpoint FAILED at step (\d+): gs://bucket/run/checkpoints/", said.out)
    assert failed == ["36", "54"]
    assert metrics.CHECKPOINT_FAILURES._value.get() == failures + 2
    assert f"--output {RUN}: the last checkpoint could not be written" in said.err
    assert "503" in said.err and "previous one is intact" in said.err
    newest = checkpoint.newest(RUN)
    assert newest is not None and newest.meta["step"] == 18
    store.intercept = None
    assert train.main(command(dataset, RUN, 3)) == 0
    assert f"resumed {newest.url}" in capsys.readouterr().out
    assert not storage.exists(f"{RUN}/.writer")


@pytest.mark.slow
def test_killed_while_it_saves(
    dataset: Dataset, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run killed between two files of a checkpoint resumes from the checkpoint before, at once
    (without waiting for the dead writer's lease), and ends like a run that was never killed."""
    every = ["--checkpoint.every_drawings", str(6 * 96)]
    assert train.main(command(dataset, str(tmp_path / "whole"), 2, *every)) == 0
    process = runs.start(runs.ALONE, command(dataset, RUN, 2, *every))
    midway = threading.Event()

    def kill_in_the_second(request: Request) -> Response | None:
        if request.params.get("name", "").endswith("step-000000012/state.pt"):
            process.send_signal(signal.SIGKILL)
            midway.set()
            raise ConnectionResetError
        return None

    store.intercept = kill_in_the_second
    output, _ = process.communicate()
    assert midway.is_set() and process.returncode == -signal.SIGKILL, output
    left = checkpoint.folder(RUN) + "/" + checkpoint.name(12)
    assert storage.exists(f"{left}/model.safetensors")
    store.intercept = None
    capsys.readouterr()
    assert train.main(command(dataset, RUN, 2, *every)) == 0
    said = capsys.readouterr()
    assert f"{left}: incomplete, skipped" in said.err
    assert f"resumed {checkpoint.folder(RUN)}/{checkpoint.name(6)}" in said.out
    whole, again = checkpoint.newest(str(tmp_path / "whole")), checkpoint.newest(RUN)
    assert whole is not None and again is not None
    assert again.meta["step"] == whole.meta["step"] == 36
    assert again.meta["order_digest"] == whole.meta["order_digest"]
    for mine, due in ((again.weights, whole.weights), (again.average, whole.average)):
        torch.testing.assert_close(mine, due, rtol=0, atol=0)


@pytest.mark.parametrize("where", ["local", "store"])
def test_data_loss_a_start_that_does_not_train(
    dataset: Dataset, store: Store, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run that is started again, a refused resume and an error in warm-up leave the log
    of the run as it is, byte for byte."""
    output = RUN if where == "store" else str(tmp_path / "run")
    log = storage.join(output, "metrics.jsonl")
    assert train.main(command(dataset, output, 1)) == 0
    written = storage.read(log)
    assert written.count(b"\n") > 3
    assert train.main(command(dataset, output, 1)) == 0
    assert storage.read(log) == written
    assert train.main(command(dataset, output, 2, "--model.width", "8")) == 2
    assert storage.read(log) == written
    monkeypatch.setattr(Learner, "warm_up", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main(command(dataset, output, 2))
    assert storage.read(log) == written


def test_a_run_whose_lease_was_taken_writes_nothing_more(
    dataset: Dataset,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A process that was taken for dead and replaced ends with an error. It neither writes a
    checkpoint nor removes one of the other process."""
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    taker = json.dumps({"id": "x", "who": "process 7 on elsewhere"}).encode()

    def take(request: Request) -> None:
        if request.params.get("name", "").endswith("step-000000018/meta.json"):
            store.server.gcs.store.insert("bucket", {"name": "run/.writer"}, memoryview(taker), {})

    store.intercept = take
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.0)  # it asks before every write
    assert train.main(command(dataset, RUN, 3)) == 1
    assert "process 7 on elsewhere writes this run now" in capsys.readouterr().err
    assert checkpoint.steps(RUN) == [18]
    assert storage.read(f"{RUN}/.writer") == taker


@pytest.mark.slow
def test_the_disk_fills(dataset: Dataset, tmp_path: Path) -> None:
    """On a real disk with room for 2.6 of the 3 checkpoints to keep, the others are reported and
    training goes on; that the last one is missing is an error. After one has been removed, the
    same command ends well."""
    assert train.main(command(dataset, str(tmp_path / "small"), 1)) == 0
    newest = checkpoint.newest(str(tmp_path / "small"))
    assert newest is not None
    size = sum(path.stat().st_size for path in Path(newest.url).iterdir())
    output = tmp_path / "run"
    output.mkdir()
    keep = ["--checkpoint.keep_last", "3", "--checkpoint.keep_best", "0"]
    arguments = command(dataset, str(output), 4, *keep)
    program = [sys.executable, "-m", "tests.support.processes.programs.train_twice_on_full_disk"]
    done = subprocess.run(
        [*with_disk_of(int(2.6 * size), output), *program, str(output), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | runs.ONE_THREAD,
    )
    assert done.returncode == 0, done.stderr
    failed = re.findall(r"checkpoint FAILED at step (\d+): \[Errno 28\]", done.stdout)
    assert failed == ["54", "72"]
    assert re.findall(r"(?:code|newest) \d+", done.stdout) == ["code 1", "newest 36", "code 0"]
    assert "the last checkpoint could not be written: [Errno 28]" in done.stderr
