"""A stalled run ends and names the rank that the others wait for."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.base.settings import Train
from quickdraw_dist.base.telemetry.phases import PHASES, Phases
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.distributed.watchdog import Report, Watchdog, blame
from tests.support import runs
from tests.support.data.datasets import Dataset

Processes = multiprocessing.context.ForkServerContext

# -- blame -----------------------------------------------------------------------------------------


def report(phase: str, step: int = 5, serial: int = 2, overdue: bool = True) -> Report:
    """Of some process."""
    return Report(serial, step, PHASES.index(phase), 0, 9.0, overdue, "process 1 on here")


EARLIER = report("forward", serial=1)


@pytest.mark.parametrize(
    ("reports", "blamed"),
    [
        ([report("backward"), report("data wait"), report("backward")], {1}),
        ([report("optimizer", 4), report("optimizer", 4), report("data wait", 4)], {2}),
        ([report("backward"), report("evaluation"), report("backward", 4)], {2}),
        ([report("backward"), report("backward")], {0, 1}),  # nobody is behind: all are told
        ([report("backward"), report("forward", overdue=False)], set()),  # it still has time
        ([report("backward"), EARLIER], {1}),  # no newer report: it does not run any more
        ([report("backward"), None, report("data wait")], {1}),
    ],
)
def test_who_is_behind_is_to_blame(reports: list[Report | None], blamed: set[int]) -> None:
    """Not those that wait for it in a collective, although they stand still as it does."""
    found = blame(dict.fromkeys(range(len(reports)), EARLIER), dict(enumerate(reports)))
    assert found.keys() == blamed


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(PHASES)), min_size=1, max_size=9))
def test_where_all_are_overdue_somebody_is_to_blame(places: list[tuple[int, str]]) -> None:
    """No standstill is left without a name."""
    now: dict[int, Report | None] = {
        rank: report(phase, step) for rank, (step, phase) in enumerate(places)
    }
    assert blame(dict.fromkeys(now, None), now)


# -- real ranks ------------------------------------------------------------------------------------

STALL_SECONDS = 2.0


def watched(rank: int, size: int) -> Phases:
    """The clock of a process with a watchdog, which ends it."""
    phases = Phases()
    world = World(rank, size, rank, size, torch.device("cpu"))
    Watchdog(world, phases, Train(stall_seconds=STALL_SECONDS), end=lambda: os._exit(1))
    return phases


def one_rank(rank: int, size: int, port: int, fault: str, said: str) -> None:
    """Steps with an all-reduce each; rank 1 does not come through the fourth."""
    os.dup2(os.open(f"{said}/{rank}", os.O_CREAT | os.O_WRONLY), 2)
    store = dist.TCPStore("127.0.0.1", port)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    phases = watched(rank, size)
    for step in range(100):
        bad = rank == 1 and step == 3
        phases.enter("data wait", step)
        if bad and fault == "loader":
            threading.Event().wait()
        with phases("forward", step):
            if bad and fault == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
        with phases("backward", step):
            dist.all_reduce(torch.ones(1))
        phases.enter("optimizer", step)


@pytest.mark.parametrize("fault", ["loader", "stopped"])
def test_the_stalled_rank_is_named(processes: Processes, tmp_path: Path, fault: str) -> None:
    """A loader that never delivers, a process that does not run: the others end and say so."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [
        processes.Process(target=one_rank, args=(rank, 3, store.port, fault, str(tmp_path)))
        for rank in range(3)
    ]
    for process in ranks:
        process.start()
    ranks[0].join()
    ranks[2].join()
    ranks[1].kill() if fault == "stopped" else ranks[1].join()
    ranks[1].join()
    assert ranks[0].exitcode == 1
    said = [Path(tmp_path, str(rank)).read_text() for rank in range(3)]
    for lines in (said[0], said[2]):
        (line,) = (line for line in lines.splitlines() if line.startswith("watchdog: rank 1"))
        assert ("data wait of step 3 for" if fault == "loader" else "does not answer") in line
        assert "waits for it in backward of step 3" in lines
        assert "all_reduce" in lines  # the stack
    if fault == "loader":
        assert "one_rank" in said[1]  # and its own stack shows where it hangs


@pytest.mark.slow
def test_a_run_whose_loader_hangs_ends(dataset: Dataset, tmp_path: Path) -> None:
    """The training command itself under the launcher: rank, phase, step, stack and exit code 1."""
    arguments = ["--data", dataset.folder, "--output", str(tmp_path / "run"), *runs.NO_PAGE]
    arguments += ["--train.global_batch", "64", "--model.width", "2", "--train.device", "cpu"]
    arguments += ["--metrics.port", "0", "--train.stall_seconds", str(STALL_SECONDS)]
    run = runs.start_with_fault(
        runs.launcher(2, "--standalone"),
        arguments,
        step=3,
        phase="data wait",
        action="hang",
        rank=1,
    )
    said, _ = run.communicate()
    assert run.returncode == 1
    assert re.search(r"watchdog: rank 1 \(process \d+ on .*\) .* data wait of step 3", said)
    assert "faults.py" in said  # where it hangs


def alone(ready: str) -> None:
    """Says when it works, and goes on working until it is let go."""
    phases = watched(0, 1)
    for step in range(10**9):
        phases.enter("data wait", step)
        if step == 1000:
            Path(ready).touch()
        if Path(ready + ".enough").exists():
            return


def test_a_suspended_job_goes_on(processes: Processes, tmp_path: Path) -> None:
    """The time that a whole process was stopped (a suspended job, a closed laptop) is not held
    against it."""
    ready = tmp_path / "ready"
    process = processes.Process(target=alone, args=(str(ready),))
    process.start()
    while not ready.exists() and process.is_alive():
        process.join(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    process.join(1.5 * STALL_SECONDS)
    os.kill(process.pid, signal.SIGCONT)
    process.join(STALL_SECONDS)
    Path(f"{ready}.enough").touch()
    process.join()
    assert process.exitcode == 0
