"""Goodput of a run that is killed, lies there and is started again: no second is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from jobs import shard
from quickdraw_dist import train
from quickdraw_dist.distributed.exits import leave
from quickdraw_dist.run.progress import ProgressLog
from tests.support import runs

BATCH = 64


def life(arguments: list[str], dies_after: int | None) -> None:
    """The training command in this process; SIGKILL as soon as a step's progress was shown."""
    training = ProgressLog.log_training

    def show_and_die(log: ProgressLog, position: object, *rest: object) -> None:
        training(log, position, *rest)  # type: ignore[arg-type]
        if position.total_steps == dies_after:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)

    ProgressLog.log_training = show_and_die  # type: ignore[assignment]
    leave(train.main(arguments))


def test_causes_add_up_to_the_wall_over_restarts(
    tmp_path: Path, processes: ForkServerContext
) -> None:
    """Killed before the first checkpoint and after it, then let run to the end. The causes are the
    time since the first start within 1 %, and what was lost stands under restart."""
    data, output = tmp_path / "shards", tmp_path / "run"
    source = ["--source", "synthetic:?classes=4&per_class=100&seed=3", "--processes", "1"]
    shard.main([*source, "--dest", str(data), "--shard.block", "64"])
    settings = ["--data", str(data), "--output", str(output), "--train.epochs", "2"]
    settings += ["--train.global_batch", str(BATCH), "--train.log_every", "1"]
    settings += ["--checkpoint.every_drawings", str(3 * BATCH), "--checkpoint.keep_last", "9"]
    settings += ["--model.width", "4", "--metrics.port", "0", "--train.device", "cpu"]
    settings += runs.NO_PAGE
    before, starts = time.time(), []
    for dies_after, code in ((2, -signal.SIGKILL), (4, -signal.SIGKILL), (None, 0)):
        process = processes.Process(target=life, args=(settings, dies_after))
        process.start()
        process.join()
        assert process.exitcode == code
        records = [json.loads(line) for line in (output / "metrics.jsonl").open()]
        starts.append([(r["step"], r["time"]) for r in records if r["kind"] == "start"])
    assert [step for step, _ in starts[-1]] == [0, 0, 3]
    assert starts[-1][:2] == starts[1]  # what a start wrote stays
    first, second, third = (at for _, at in starts[-1])
    assert before <= first
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 11))

    end = records[-1]
    assert end["kind"] == "end"
    seconds = end["goodput_seconds"]
    assert sum(seconds.values()) == pytest.approx(end["time"] - first, rel=0.01)
    meta = json.loads((max((output / "checkpoints").iterdir()) / "meta.json").read_text())
    assert meta["restarts"] == 2
    saved = json.loads((output / "checkpoints" / "step-000000003" / "meta.json").read_text())
    assert saved["restarts"] == 1
    # All of the first life, and the second from its checkpoint on.
    assert seconds["restart"] >= second - first + third - saved["goodput"]["until"]
    assert min(seconds[cause] for cause in ("train", "evaluation", "checkpoint", "compile")) > 0
