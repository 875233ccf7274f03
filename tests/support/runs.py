"""Training runs in tests: started as a user does, or in processes at hand; and compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jobs import shard
from quickdraw_dist import train
from quickdraw_dist.base import storage
from quickdraw_dist.distributed.exits import leave
from quickdraw_dist.run.checkpoint import files as checkpoint
from tests.support.gcs.local import use_store

GLOBAL_BATCH = 96
NO_PAGE = ["--metrics.report", "false"]
"""Drawing the curves of a run costs more than the rest of a small one."""
STEPS = 5
"""In an epoch of the small dataset; a run has two."""


def make_dataset(
    folder: Path, per_class: int = 100, val_fraction: float = 0.05, test_fraction: float = 0.05
) -> Path:
    """Synthetic drawings of 6 classes, in small shards and blocks that lanes meet in; what is
    left for training should be 540."""
    source = ["--source", f"synthetic:?classes=6&per_class={per_class}&seed=3", "--processes", "1"]
    sizes = ["--shard.drawings_per_shard", "100", "--shard.block", "32"]
    shares = [
        "--shard.val_fraction",
        str(val_fraction),
        "--shard.test_fraction",
        str(test_fraction),
    ]
    shard.main([*source, "--dest", str(folder), *sizes, *shares])
    return folder


def settings(dataset: Path | str, output: Path | str, *extra: str) -> list[str]:
    """Of two epochs with a checkpoint every second step; the same bits every time."""
    chosen = ["--data", str(dataset), "--output", str(output), "--train.epochs", "2"]
    chosen += ["--train.global_batch", str(GLOBAL_BATCH), "--train.deterministic", "true"]
    chosen += ["--train.log_every", "1", "--checkpoint.every_drawings", str(2 * GLOBAL_BATCH)]
    chosen += ["--model.width", "4", "--train.device", "cpu", "--metrics.port", "0"]
    return [*chosen, *NO_PAGE, *extra]


ALONE = [sys.executable]
"""A world of one."""


def torchrun(ranks: int) -> list[str]:
    """Bare torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [sys.executable, *launcher]


def launcher(ranks: int, *options: str) -> list[str]:
    """Our launcher."""
    return [sys.executable, "-m", "quickdraw_dist.launch", *options, f"--nproc_per_node={ranks}"]


def start(command: Sequence[str], arguments: Sequence[str]) -> subprocess.Popen[str]:
    """The training command, in a process group of its own, its lines readable one by one."""
    return subprocess.Popen(
        [*command, "-m", "quickdraw_dist.train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def _read_until(said: Iterable[str], text: str) -> str:
    """Lines up to one that has the text; there must be one."""
    lines = []
    for line in said:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError("never said " + text + ":\n" + "".join(lines))


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read lines until one has the text."""
    assert process.stdout is not None
    return _read_until(process.stdout, text)


def finish(process: subprocess.Popen[str]) -> str:
    """All of its output; it must end well."""
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


class Here:
    """A training run whose ranks are forked from a process that has torch already: it begins in
    seconds less than torchrun needs."""

    def __init__(
        self,
        processes: ForkServerContext,
        ranks: int,
        arguments: list[str],
        store: str | None = None,
    ) -> None:
        """Begins at once; `store` is the address of what stands behind gs://, if that is used."""
        # This process keeps the store that ranks meet in, as torchrun does.
        self._meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        said, say = processes.Pipe(duplex=False)
        self.ranks = [
            processes.Process(
                target=_rank, args=(rank, ranks, self._meeting.port, arguments, store, say)
            )
            for rank in range(ranks)
        ]
        for process in self.ranks:
            process.start()
        say.close()
        self._said = os.fdopen(os.dup(said.fileno()))

    def wait_for(self, text: str) -> str:
        """Read lines until one has the text."""
        return _read_until(self._said, text)

    def kill(self) -> None:
        """SIGKILL to all of it."""
        for process in self.ranks:
            process.kill()
        self.end()

    def end(self) -> tuple[str, list[int | None]]:
        """What it says from now on, and the ranks' exit codes."""
        with self._said:
            said = self._said.read()
        for process in self.ranks:
            process.join()
        return said, [process.exitcode for process in self.ranks]


def run_here(
    processes: ForkServerContext, ranks: int, arguments: list[str], store: str | None = None
) -> str:
    """All that such a run says; it must end well."""
    said, codes = Here(processes, ranks, arguments, store).end()
    assert codes == [0] * ranks, said
    return said


def _rank(
    rank: int, ranks: int, port: int, arguments: list[str], store: str | None, say: Connection
) -> None:
    for output in (1, 2):
        os.dup2(say.fileno(), output)
    if store is not None:
        use_store(store)
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


def checkpoints(output: Path) -> list[int]:
    """Steps of the checkpoints that are there, in order."""
    found = output.glob("checkpoints/step-*/meta.json")
    return sorted(json.loads(path.read_text())["step"] for path in found)


def newest(output: Path | str) -> checkpoint.Checkpoint:
    """The checkpoint of the last step; it must be whole."""
    last = checkpoint.steps(str(output))[-1]
    return checkpoint.load(storage.join(checkpoint.folder(str(output)), checkpoint.name(last)))


def last_meta(output: Path | str) -> dict[str, Any]:
    """Of the newest checkpoint."""
    return newest(output).meta


def validations(output: Path | str) -> list[tuple[int, float, float]]:
    """Step, accuracy and loss of every validation of a run, in order."""
    text = storage.read(storage.join(str(output), "metrics.jsonl")).decode()
    records = [json.loads(line) for line in text.splitlines()]
    chosen = [record for record in records if record["kind"] == "validation"]
    return [(record["step"], record["top1"], record["loss"]) for record in chosen]


def assert_equal_runs(one: Path | str, other: Path | str) -> None:
    """Two whole runs: the same weights, averages, order and validations, bit for bit."""
    ours, theirs = newest(one), newest(other)
    assert ours.meta["step"] == theirs.meta["step"] == 2 * STEPS
    assert ours.meta["order_digest"] == theirs.meta["order_digest"]
    for mine, yours in ((ours.weights, theirs.weights), (ours.average, theirs.average)):
        assert mine.keys() == yours.keys()
        for name, value in mine.items():
            assert torch.equal(value, yours[name]), name
    assert validations(one) == validations(other)
