"""Whole runs whose checkpoints meet a full disk, a store that is down, SIGKILL, a second writer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from quickdraw_dist import train
from quickdraw_dist.base import storage
from quickdraw_dist.base.telemetry import metrics as telemetry
from quickdraw_dist.run import lease
from quickdraw_dist.run.checkpoint import files as checkpoint
from quickdraw_dist.run.folder import RunFolder
from quickdraw_dist.training.learner import Learner
from tests.conftest import Dataset, Store
from tests.data.stream.cache.test_cache_in_runs import with_full_disk
from tests.support import runs
from tests.support.gcs.server import Request, Response

RUN = "gs://bucket/run"
TRAIN = ["--train.global_batch", "96", "--train.device", "cpu", "--train.deterministic", "true"]
TRAIN += ["--model.width", "4", "--metrics.port", "0", "--stream.threads", "1", *runs.NO_PAGE]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the other processes of these tests; bits would differ, and two are slower."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        torch.set_num_threads(1)
        patch.setattr(torch, "set_num_threads", lambda _: None)
        yield
    torch.set_num_threads(before)


def command(dataset: Dataset, output: str, epochs: int, *more: str) -> list[str]:
    """Arguments of a run; an epoch is 18 steps."""
    where = ["--data", dataset.folder, "--output", output]
    return [*where, "--train.epochs", str(epochs), *TRAIN, *more]


def fail(store: Store, doomed: Callable[[int], bool]) -> None:
    """The store refuses every file of a checkpoint that is doomed, by its count among those that
    were tried."""
    tried: list[str] = []

    def refuse(request: Request) -> Response | None:
        found = re.search(r"checkpoints/(step-\d+)/", request.params.get("name", ""))
        if found is None:
            return None
        if found[1] not in tried:
            tried.append(found[1])
        return Response(503) if doomed(tried.index(found[1])) else None

    store.intercept = refuse


@pytest.mark.parametrize("heals", [True, False])
def test_a_store_that_fails_five_times_in_a_row(
    heals: bool,
    dataset: Dataset,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One checkpoint is written, five are not, and training goes on to its end. Then the last one
    decides: it is whole, or the run ends with an error, and the first one still stands."""
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    failures = telemetry.CHECKPOINT_FAILURES._value.get()
    fail(store, lambda count: 1 <= count <= (5 if heals else 6))
    code = train.main(command(dataset, RUN, 7))
    said = capsys.readouterr()
    failed = re.findall(r"checkpoint FAILED at step (\d+): gs://bucket/run/checkpoints/", said.out)
    expected = [18 * epoch for epoch in range(2, 7 if heals else 8)]
    assert [int(step) for step in failed] == expected
    assert telemetry.CHECKPOINT_FAILURES._value.get() == failures + len(expected)
    newest = checkpoint.newest(RUN)
    assert newest is not None
    if heals:
        assert (code, newest.meta["step"]) == (0, 7 * 18)
        assert "finished" in said.out
    else:
        assert (code, newest.meta["step"]) == (1, 18)
        assert f"--output {RUN}: the last checkpoint could not be written" in said.err
        assert "503" in said.err and "previous one is intact" in said.err
        store.intercept = None
        assert train.main(command(dataset, RUN, 7)) == 0
        assert f"resumed {newest.url}" in capsys.readouterr().out
    assert not storage.exists(f"{RUN}/.writer")


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """The command as a process of its own, on one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", "quickdraw_dist.train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(os.cpu_count())},
    )


def test_killed_while_it_saves(
    dataset: Dataset, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL when one file of a checkpoint is there and the next is under way: the same command
    at once (nobody waits for the dead writer's lease) goes on from the checkpoint before, and
    leaves what a run leaves that was never touched."""
    every = ["--checkpoint.every_drawings", str(6 * 96)]
    assert train.main(command(dataset, str(tmp_path / "whole"), 2, *every)) == 0
    process = start(command(dataset, RUN, 2, *every))
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


def test_a_second_run_in_the_same_place(
    dataset: Dataset,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It ends with the name of the first, which is not disturbed, and with 1: Kubernetes tries
    again, and the run goes on when the first one has ended."""
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    first = RunFolder(RUN)
    assert train.main(command(dataset, RUN, 1)) == 1
    assert f"process {os.getpid()} on " in capsys.readouterr().err
    first.check()
    assert checkpoint.steps(RUN) == []
    first.close()


def test_a_run_that_another_one_took(
    dataset: Dataset,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Thought dead, and gone on with elsewhere: it ends with an error, and of what it would have
    written, or removed of the other one's, nothing happens."""
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


FULL_DISK = """
import shutil, sys
from pathlib import Path
from quickdraw_dist import train
from quickdraw_dist.run.checkpoint import files as checkpoint
output, arguments = sys.argv[1], sys.argv[2:]
print("code", train.main(arguments))
step = checkpoint.newest(output).meta["step"]
print("stands", step)
for other in checkpoint.steps(output):
    if other != step:
        shutil.rmtree(Path(checkpoint.folder(output), checkpoint.name(other)))
arguments[arguments.index("--checkpoint.keep_last") + 1] = "1"
print("code", train.main(arguments))
"""


def test_the_disk_fills(dataset: Dataset, tmp_path: Path) -> None:
    """A real disk with room for two checkpoints and a bit, where three are to be kept: the others
    are said and counted, training goes on, and only the last one is an error. With room again the
    same command ends well."""
    assert train.main(command(dataset, str(tmp_path / "small"), 1)) == 0
    newest = checkpoint.newest(str(tmp_path / "small"))
    assert newest is not None
    size = sum(path.stat().st_size for path in Path(newest.url).iterdir())
    output = tmp_path / "run"
    output.mkdir()
    prefix = with_full_disk(output, int(2.6 * size))
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk of a certain size to be had: {error}")
    arguments = command(dataset, str(output), 4, "--checkpoint.keep_last", "3")
    done = subprocess.run(
        [*prefix, sys.executable, "-c", FULL_DISK, str(output), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(os.cpu_count())},
    )
    assert done.returncode == 0, done.stderr
    failed = re.findall(r"checkpoint FAILED at step (\d+): \[Errno 28\]", done.stdout)
    assert failed == ["54", "72"]
    assert re.findall(r"(?:code|stands) \d+", done.stdout) == ["code 1", "stands 36", "code 0"]
    assert "the last checkpoint could not be written: [Errno 28]" in done.stderr
