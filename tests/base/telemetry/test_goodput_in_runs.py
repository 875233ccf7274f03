"""Goodput of a run that is killed and started again accounts for every second."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from jobs import shard
from tests.support import runs

BATCH = 64


@pytest.mark.slow
def test_causes_add_up_to_the_wall_over_restarts(
    tmp_path: Path, processes: ForkServerContext
) -> None:
    """A run is killed before the first checkpoint and after it, then runs to its end: the causes
    add up to the time since the first start within 1 %, and lost time is charged to restart."""
    data, output = tmp_path / "shards", tmp_path / "run"
    source = ["--source", "synthetic:?classes=4&per_class=100&seed=3", "--processes", "1"]
    shard.main([*source, "--dest", str(data), "--shard.block", "64"])
    settings = ["--data", str(data), "--output", str(output), "--train.epochs", "2"]
    settings += ["--train.global_batch", str(BATCH), "--train.log_every", "1"]
    settings += ["--checkpoint.every_drawings", str(3 * BATCH), "--checkpoint.keep_last", "9"]
    settings += ["--model.width", "4", "--metrics.port", "0", "--train.device", "cpu"]
    settings += runs.NO_PAGE
    before, starts = time.time(), []
    saved = output / "checkpoints" / "step-000000003" / "meta.json"
    lives: list[Callable[[], object]] = [
        lambda: runs.kill_forked(processes, 1, settings, step=2),
        lambda: runs.kill_forked(processes, 1, settings, step=4, after=saved),
        lambda: runs.run_forked(processes, 1, settings),
    ]
    for live in lives:
        live()
        records = runs.records(output)
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
    second_life = json.loads(saved.read_text())
    assert second_life["restarts"] == 1
    # All of the first life, and the second from its checkpoint on.
    assert seconds["restart"] >= second - first + third - second_life["goodput"]["until"]
    assert min(seconds[cause] for cause in ("train", "evaluation", "checkpoint", "compile")) > 0
