"""A signal in every phase of a run: what is saved, the exit code, and that the resumed run ends
like one that was never stopped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.gcs.local import Store
from tests.support.gcs.server import Request, Response
from tests.support.processes.system import (
    PID_NAMESPACE,
    children,
    command_line,
    has_signal,
    may_unshare,
)

pytestmark = pytest.mark.slow

EXTRA = ("--train.micro_batch", "5")
"""A step has ten micro-batches per rank, so that a signal comes between two of them."""

Reference = Callable[[int], Path]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Most drawings are for validation, which takes seconds with a batch of one."""
    folder = tmp_path_factory.mktemp("preemption") / "shards"
    return runs.make_dataset(folder, per_class=600, val_fraction=0.8, test_fraction=0.05)


@pytest.fixture(scope="module")
def whole(
    dataset: Path, tmp_path_factory: pytest.TempPathFactory, processes: ForkServerContext
) -> Reference:
    """Runs of 2 or 3 ranks that were never stopped."""
    made: dict[int, Path] = {}

    def reference(ranks: int) -> Path:
        if ranks not in made:
            made[ranks] = tmp_path_factory.mktemp(f"whole-{ranks}")
            runs.run_forked(processes, ranks, runs.settings(dataset, made[ranks], *EXTRA))
        return made[ranks]

    return reference


def launch(dataset: Path | str, output: Path | str, *extra: str) -> subprocess.Popen[str]:
    """Start two ranks with the launcher."""
    return runs.start(runs.launcher(2), runs.settings(dataset, output, *EXTRA, *extra))


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> str:
    """Send the launcher a signal; it must return 85 then."""
    process.send_signal(number)
    said, _ = process.communicate()
    assert process.returncode == 85, said
    return said


# -- before the first step: there is nothing to save -----------------------------------------------


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """Return the ranks' processes as soon as both handle signals; they then import for seconds."""
    while True:
        assert launcher.poll() is None
        ranks = [
            rank
            for torchrun in children(launcher.pid)
            for rank in children(torchrun)
            # Until it runs its own program, a child has torchrun's command line and handlers.
            if command_line(rank) != command_line(torchrun)
        ]
        if len(ranks) == 2 and all(has_signal(rank, "SigCgt", signal.SIGTERM) for rank in ranks):
            return ranks
        time.sleep(0.001)


@pytest.mark.parametrize("to", ["launcher", "one rank"])
def test_while_the_ranks_start(dataset: Path, tmp_path: Path, to: str) -> None:
    """When one rank leaves, torchrun sends the other one TERM: that is no crash."""
    process = launch(dataset, tmp_path / "run")
    ranks = ranks_of(process)
    os.kill(process.pid if to == "launcher" else ranks[1], signal.SIGTERM)
    said, _ = process.communicate()
    assert process.returncode == 85, said
    assert "Traceback" not in said and not (tmp_path / "run").exists()


def test_while_waiting_for_other_nodes(dataset: Path, tmp_path: Path) -> None:
    """The signal is handled although torchrun waits for the first node inside C++."""
    with socket.create_server(("127.0.0.1", 0)) as first_node:
        address = ["--master-addr=127.0.0.1", f"--master-port={first_node.getsockname()[1]}"]
        meeting = ["--nnodes=2", "--node-rank=1", *address]
        process = runs.start(runs.launcher(2, *meeting), runs.settings(dataset, tmp_path / "run"))
        with first_node.accept()[0]:
            stop(process, signal.SIGHUP)


def test_while_the_dataset_is_opened(dataset: Path, tmp_path: Path) -> None:
    """The manifest is a pipe without a writer, as if a store did not answer."""
    shutil.copytree(dataset, tmp_path / "shards")
    manifest = tmp_path / "shards" / "manifest.json"
    manifest.unlink()
    os.mkfifo(manifest)
    process = launch(tmp_path / "shards", tmp_path / "run")
    with manifest.open("w"):  # waits for a reader
        assert "before the first step" in stop(process)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_while_the_model_is_compiled(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compilers and their workers end, too: the output stays open until they have."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    arguments = runs.settings(dataset, tmp_path / "run", "--train.compile", "default")
    process = runs.start(runs.launcher(1), arguments)
    while not any(path.suffix == ".cpp" for path in cache.rglob("*")):
        assert process.poll() is None
        time.sleep(0.01)
    assert "before the first step" in stop(process)
    assert runs.checkpoints(tmp_path / "run") == []


# -- from the first step on ------------------------------------------------------------------------


def test_within_a_step_and_as_process_1(
    dataset: Path, tmp_path: Path, whole: Reference, processes: ForkServerContext
) -> None:
    """USR1, as Slurm sends it, between micro-batches, while loader threads work."""
    namespace = PID_NAMESPACE if may_unshare else []
    arguments = runs.settings(dataset, tmp_path, *EXTRA)
    process = runs.start([*namespace, *runs.launcher(2)], arguments)
    runs.wait_for_step(process, tmp_path, 3)
    (launcher,) = children(process.pid) if namespace else [process.pid]
    os.kill(launcher, signal.SIGUSR1)
    said, _ = process.communicate()
    assert process.returncode == 85, said
    assert runs.checkpoints(tmp_path)[-1] > 2  # not the regular one
    assert "stopped by a signal and saved" in said.splitlines()[-1]
    runs.run_forked(processes, 2, arguments)
    runs.assert_equal_runs(whole(2), tmp_path)


def evaluate_slowly(command: list[str], dataset: Path, output: Path) -> subprocess.Popen[str]:
    """Start a run and wait for its first validation, which takes seconds."""
    slowly = runs.settings(dataset, output, *EXTRA, "--evaluation.batch", "1")
    process = runs.start(command, slowly)
    runs.wait_for_step(process, output, 5)
    return process


def assert_stopped_in_evaluation(output: Path) -> None:
    """The epoch's steps are saved, and its validation is still to be made."""
    assert runs.records(output, "validation") == []
    meta = runs.last_meta(output)
    assert (meta["epoch"], meta["step_in_epoch"], meta["validation"]) == (0, 5, None)


def test_in_evaluation(
    dataset: Path, tmp_path: Path, whole: Reference, processes: ForkServerContext
) -> None:
    """The validation is abandoned; the resumed run repeats it and ends like any other."""
    process = evaluate_slowly(runs.launcher(2), dataset, tmp_path)
    stop(process, signal.SIGINT)
    assert_stopped_in_evaluation(tmp_path)
    runs.run_forked(processes, 2, runs.settings(dataset, tmp_path, *EXTRA))
    runs.assert_equal_runs(whole(2), tmp_path)


@pytest.mark.parametrize("to", ["one rank", "torchrun"])
def test_three_ranks_under_bare_torchrun(
    to: str, dataset: Path, tmp_path: Path, whole: Reference, processes: ForkServerContext
) -> None:
    """A signal to one rank stops all of them. A terminal that closes hangs up torchrun, which tells
    its ranks. torchrun itself returns 1."""
    process = evaluate_slowly(runs.torchrun(3), dataset, tmp_path)
    if to == "torchrun":
        process.send_signal(signal.SIGHUP)
    else:
        os.kill(children(process.pid)[1], signal.SIGUSR1)
    said, _ = process.communicate()
    assert process.returncode == 1
    assert "stopped by a signal and saved" in said
    assert to == "torchrun" or said.count("exitcode  : 85") >= 1
    assert_stopped_in_evaluation(tmp_path)
    runs.run_forked(processes, 3, runs.settings(dataset, tmp_path, *EXTRA))
    runs.assert_equal_runs(whole(3), tmp_path)


class Held:
    """Requests to a store that are not answered until `go` is set; `came` tells of the first."""

    def __init__(self, store: Store, held: Callable[[Request], bool]) -> None:
        self._held, self.came, self.go = held, threading.Event(), threading.Event()
        store.intercept = self._intercept

    def _intercept(self, request: Request) -> Response | None:
        if self._held(request):
            self.came.set()
            self.go.wait()
        return None


def test_during_a_save(
    dataset: Path,
    tmp_path: Path,
    whole: Reference,
    processes: ForkServerContext,
    store: Store,
) -> None:
    """A signal while the store writes a checkpoint: that one and the next are whole."""
    held = Held(store, lambda request: "checkpoints/" in request.params.get("name", ""))
    output = "gs://bucket/run"
    process = launch(dataset, output)
    held.came.wait()
    process.send_signal(signal.SIGTERM)
    held.go.set()
    said, _ = process.communicate()
    assert process.returncode == 85, said
    assert "incomplete, skipped" not in said
    runs.run_forked(processes, 2, runs.settings(dataset, output, *EXTRA), store.server.url)
    runs.assert_equal_runs(whole(2), output)


def test_a_stalled_store(
    dataset: Path,
    tmp_path: Path,
    whole: Reference,
    processes: ForkServerContext,
    store: Store,
) -> None:
    """Ranks cannot agree to stop while one waits for data: it exits when its time is over, and the
    run resumes from the checkpoint before."""
    data = store.upload(dataset, "gs://bucket/shards")
    held = Held(store, lambda request: "quickdraw-val" in request.path)
    cache = ["--stream.cache_folder", str(tmp_path / "cache")]
    process = launch(data, tmp_path / "run", "--train.shutdown_seconds", "0.5", *cache)
    held.came.wait()
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
    assert process.returncode == 1
    assert "was asked to stop 0.5 seconds ago and is still busy with evaluation" in said
    assert {2} <= set(runs.checkpoints(tmp_path / "run")) <= {2, 4}
    held.go.set()
    runs.run_forked(processes, 2, runs.settings(dataset, tmp_path / "run", *EXTRA))
    runs.assert_equal_runs(whole(2), tmp_path / "run")


def test_a_rank_that_is_killed(dataset: Path, tmp_path: Path) -> None:
    """torchrun sends the other ranks TERM: they leave with 1 and save nothing."""
    process = launch(dataset, tmp_path)
    runs.wait_for_step(process, tmp_path, 3)
    (torchrun,) = children(process.pid)
    os.kill(children(torchrun)[1], signal.SIGKILL)
    said, _ = process.communicate()
    assert process.returncode == 1
    assert "rank 1 (process " in said and "was ended by SIGKILL" in said
    assert "stopped by a signal" not in said
