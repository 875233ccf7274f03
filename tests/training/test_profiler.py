"""--train.profile: a trace that opens and a table with the phases of a step."""

from __future__ import annotations

import gzip
import json
import re
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch

from quickdraw_dist.base.telemetry.phases import Phases
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.training.profiler import StepProfiler
from tests.support import runs
from tests.support.data.datasets import Dataset


def check_files(folder: Path, rank: int, phases: dict[str, int]) -> None:
    """A trace with each phase as often as stated, and a table with every phase."""
    trace = json.loads(gzip.decompress((folder / f"rank-{rank}.json.gz").read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"]]
    assert {name: names.count(name) for name in phases} == phases
    table = (folder / f"rank-{rank}.txt").read_text()
    for name in (*phases, "aten::"):
        assert re.search(rf"^ *{name}", table, re.MULTILINE), table


@pytest.mark.parametrize(("steps", "taken", "recorded"), [(3, 14, 3), (1_000, 9, 5), (0, 9, 0)])
def test_recorded_steps(tmp_path: Path, steps: int, taken: int, recorded: int) -> None:
    """As many steps as asked for, or as the run has after the first four."""
    said: list[str] = []
    world = World(1, 2, 1, 2, torch.device("cpu"))
    profiler = StepProfiler(steps, world, str(tmp_path), said.append)
    for number in range(taken):
        profiler.step()
        with Phases()("forward", number):
            torch.ones(8).exp()
    profiler.close()
    if not recorded:
        assert not said and not list(tmp_path.iterdir())
        return
    (line,) = said
    assert str(tmp_path / "profile" / "rank-1.txt") in line
    check_files(tmp_path / "profile", 1, {"forward": recorded})


@pytest.mark.slow
def test_profiled_run(processes: ForkServerContext, dataset: Dataset, tmp_path: Path) -> None:
    """--train.profile of a run whose steps have two micro-batches: one forward phase for each."""
    arguments = ["--data", dataset.folder, "--output", str(tmp_path), "--train.epochs", "1"]
    arguments += ["--train.global_batch", "256", "--train.micro_batch", "200", "--model.width", "1"]
    arguments += ["--metrics.port", "0", "--train.device", "cpu", "--train.profile", "1"]
    runs.run_forked(processes, 1, [*arguments, *runs.NO_PAGE])
    check_files(tmp_path / "profile", 0, {"data wait": 1, "forward": 2, "optimizer": 1})
