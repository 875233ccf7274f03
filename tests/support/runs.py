"""Training runs in tests: started as by a user or in forked processes, waited for, compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jobs import shard
from quickdraw_dist import train
from quickdraw_dist.base import storage
from quickdraw_dist.base.process.cpus import processors
from quickdraw_dist.distributed.exits import leave
from quickdraw_dist.run.checkpoint import files as checkpoint
from tests.support.gcs.local import use_store
from tests.support.processes import faults

GLOBAL_BATCH = 96
NO_PAGE = ["--metrics.report", "false"]
"""Drawing the curves of a run costs more than the rest of a small one."""
STEPS = 5
"""Steps per epoch of the small dataset; a run has two epochs."""


def make_dataset(
    folder: Path,
    per_class: int = 100,
    val_fraction: float = 0.05,
    test_fraction: float = 0.05,
    content: str = "bitmaps",
) -> Path:
    """Shard synthetic drawings of 6 classes; 540 of them should be left for training.

    Shards and blocks are so small that several lanes read one shard.
    """
    source = ["--source", f"synthetic:?classes=6&per_class={per_class}&seed=3", "--processes", "1"]
    sizes = ["--shard.drawings_per_shard", "100", "--shard.block", "32"]
    splits = ["--shard.val_fraction", str(val_fraction)]
    splits += ["--shard.test_fraction", str(test_fraction), "--shard.content", content]
    shard.main([*source, "--dest", str(folder), *sizes, *splits])
    return folder


def settings(dataset: Path | str, output: Path | str, *extra: str) -> list[str]:
    """Return arguments of a deterministic run: two epochs, a checkpoint every second step."""
    chosen = ["--data", str(dataset), "--output", str(output), "--train.epochs", "2"]
    chosen += ["--train.global_batch", str(GLOBAL_BATCH), "--train.deterministic", "true"]
    chosen += ["--train.log_every", "1", "--checkpoint.every_drawings", str(2 * GLOBAL_BATCH)]
    chosen += ["--model.width", "4", "--train.device", "cpu", "--metrics.port", "0"]
    return [*chosen, *NO_PAGE, *extra]


ONE_THREAD = {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(processors())}
"""Environment of a command that trains alone, as if its node's cores were shared with others."""
ALONE = [sys.executable]
"""A world of one rank."""


def torchrun(ranks: int) -> list[str]:
    """Return the command of torchrun itself."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [sys.executable, *launcher]


def launcher(ranks: int, *options: str) -> list[str]:
    """Return the command of this package's launcher."""
    return [sys.executable, "-m", "quickdraw_dist.launch", *options, f"--nproc_per_node={ranks}"]


def start(
    command: Sequence[str], arguments: Sequence[str], module: str = "quickdraw_dist.train"
) -> subprocess.Popen[str]:
    """Start the training command in a process group of its own, stdout and stderr in one pipe."""
    return subprocess.Popen(
        [*command, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | ONE_THREAD,
    )


def start_with_fault(
    command: Sequence[str],
    arguments: Sequence[str],
    *,
    step: int,
    phase: str,
    action: str,
    rank: int = 0,
) -> subprocess.Popen[str]:
    """Start the training command with a function of `faults` that one rank calls at a point."""
    fault = [str(step), phase, action, str(rank)]
    return start(command, [*fault, *arguments], "tests.support.processes.programs.train_with_fault")


def finish(process: subprocess.Popen[str]) -> str:
    """Return all output of a process, which must end well."""
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


class ForkedRun:
    """A training run whose ranks are forked from a process that has imported torch.

    It begins in seconds less than torchrun needs.
    """

    def __init__(
        self,
        processes: ForkServerContext,
        ranks: int,
        arguments: list[str],
        store: str | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        """Start the ranks.

        Args:
            store: The server behind gs://, where that is used.
            before: Rank 0 calls this before it trains.
        """
        # This process keeps the store that ranks meet in, as torchrun does.
        self._meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        output, write_end = processes.Pipe(duplex=False)
        port = self._meeting.port
        self.ranks = [
            processes.Process(
                target=_rank, args=(rank, ranks, port, arguments, store, before, write_end)
            )
            for rank in range(ranks)
        ]
        for process in self.ranks:
            process.start()
        write_end.close()
        self._output = os.fdopen(os.dup(output.fileno()))

    def poll(self) -> int | None:
        """Return the exit code of a rank that has ended, None while all of them run."""
        codes = (process.exitcode for process in self.ranks)
        return next((code for code in codes if code is not None), None)

    def kill(self) -> tuple[str, list[int | None]]:
        """Send SIGKILL to all ranks; returns what `communicate` does."""
        for process in self.ranks:
            process.kill()
        return self.communicate()

    def communicate(self) -> tuple[str, list[int | None]]:
        """Return all output and the ranks' exit codes when they have ended."""
        with self._output:
            output = self._output.read()
        for process in self.ranks:
            process.join()
        return output, [process.exitcode for process in self.ranks]


def run_forked(
    processes: ForkServerContext, ranks: int, arguments: list[str], store: str | None = None
) -> str:
    """Return all output of such a run, which must end well."""
    output, codes = ForkedRun(processes, ranks, arguments, store).communicate()
    assert codes == [0] * ranks, output
    return output


def kill_forked(
    processes: ForkServerContext,
    ranks: int,
    arguments: list[str],
    *,
    step: int,
    phase: str = "data wait",
    after: Path | None = None,
) -> None:
    """Kill all ranks of such a run when rank 0 enters a phase of a step and a file is there."""
    fault = partial(faults.at, step=step, phase=phase, do=partial(faults.kill, after))
    run = ForkedRun(processes, ranks, arguments, before=fault)
    run.ranks[0].join()
    output, (code, *_) = run.kill()
    assert code == -signal.SIGKILL, output


def _rank(
    rank: int,
    ranks: int,
    port: int,
    arguments: list[str],
    store: str | None,
    before: Callable[[], object] | None,
    write_end: Connection,
) -> None:
    for output in (1, 2):
        os.dup2(write_end.fileno(), output)
    if store is not None:
        use_store(store)
    if before is not None and rank == 0:
        before()
    if ranks > 1:
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
        }
    leave(train.main(arguments))


# -- what a run has written ------------------------------------------------------------------------


def records(output: Path | str, kind: str | None = None) -> list[dict[str, Any]]:
    """Return the whole lines of metrics.jsonl, all or those of one kind, in order."""
    url = storage.join(str(output), "metrics.jsonl")
    text = storage.read(url).decode() if storage.exists(url) else ""
    found = [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]
    return [record for record in found if kind in (None, record["kind"])]


def wait_for_step(run: subprocess.Popen[str] | ForkedRun, output: Path | str, step: int) -> None:
    """Wait until a run has logged this step or a later one."""
    wait(run, lambda: any(record["step"] >= step for record in records(output, "train")))


def wait(run: subprocess.Popen[str] | ForkedRun, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; a run that ends before fails the test with its output."""
    while not condition():
        if run.poll() is not None and not condition():
            raise AssertionError(run.communicate()[0])
        time.sleep(0.002)


def checkpoints(output: Path) -> list[int]:
    """Return the steps of the checkpoints in a local folder, in order."""
    found = output.glob("checkpoints/step-*/meta.json")
    return sorted(json.loads(path.read_text())["step"] for path in found)


def newest(output: Path | str) -> checkpoint.Checkpoint:
    """Load the checkpoint of the last step, which must be whole."""
    last = checkpoint.steps(str(output))[-1]
    return checkpoint.load(storage.join(checkpoint.folder(str(output)), checkpoint.name(last)))


def last_meta(output: Path | str) -> dict[str, Any]:
    """Return meta.json of the newest checkpoint."""
    return newest(output).meta


def validations(output: Path | str) -> list[tuple[int, float, float]]:
    """Return step, accuracy and loss of every validation of a run, in order."""
    chosen = records(output, "validation")
    return [(record["step"], record["top1"], record["loss"]) for record in chosen]


def assert_equal_runs(one: Path | str, other: Path | str) -> None:
    """Compare two finished runs: weights, averages, order and validations, bit for bit."""
    ours, theirs = newest(one), newest(other)
    assert ours.meta["step"] == theirs.meta["step"] == 2 * STEPS
    assert ours.meta["order_digest"] == theirs.meta["order_digest"]
    for mine, yours in ((ours.weights, theirs.weights), (ours.average, theirs.average)):
        assert mine.keys() == yours.keys()
        for name, value in mine.items():
            assert torch.equal(value, yours[name]), name
    assert validations(one) == validations(other)
