"""Ranks stop at the same step, whichever had the signal and however much each has to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from quickdraw_dist.base.errors import TrainingError
from quickdraw_dist.distributed.agreement import Agreement
from quickdraw_dist.distributed.signals import StopSignal

Task = Callable[[int, Agreement, StopSignal], Any]


def make() -> tuple[Agreement, StopSignal]:
    """Of one rank, with more time than any test takes."""
    stop = StopSignal()
    return Agreement(stop, 3_600, lambda: "a test", timeout_seconds=570), stop


def run_rank(rank: int, size: int, folder: str, task: Task) -> None:
    """One rank: writes what its task returns."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size
    )
    result = task(rank, *make())
    Path(folder, str(rank)).write_text(json.dumps(result))
    os._exit(0)


def results(processes: ForkServerContext, folder: Path, size: int, task: Task) -> list[Any]:
    """What the ranks' tasks returned; the ranks that wrote something."""
    ranks = [
        processes.Process(target=run_rank, args=(rank, size, str(folder), task))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    found = [folder / str(rank) for rank in range(size)]
    return [json.loads(path.read_text()) for path in found if path.exists()]


def stop_in_mid_run(rank: int, agreement: Agreement, stop: StopSignal) -> Any:
    """Rank 1 has a signal during its fourth item."""
    seen = []
    for item in agreement.until_stopped(range(100)):
        seen.append(item)
        if rank == 1 and item == 3:
            stop.obey()
    return seen, agreement.stopped, stop.received


def test_stop_at_the_same_item(processes: ForkServerContext, tmp_path: Path) -> None:
    """Not within an item, and at the end of the next one: the round that tells began
    before it. Every rank's time counts from there, also where there was no signal."""
    for seen in results(processes, tmp_path, 3, stop_in_mid_run):
        assert seen == [[0, 1, 2, 3, 4], True, True]


def uneven_and_stopped(rank: int, agreement: Agreement, stop: StopSignal) -> Any:
    """The rank that has nothing to do has the signal, after a first phase that was whole."""
    assert list(agreement.until_stopped([rank])) == [rank]
    if rank == 0:
        stop.obey()
    return list(agreement.until_stopped(range(3 * rank))), agreement.stopped


def uneven_whole(rank: int, agreement: Agreement, stop: StopSignal) -> Any:
    """Ranks with 0, 3 and 6 items."""
    return list(agreement.until_stopped(range(3 * rank))), agreement.stopped


def test_ranks_need_not_have_equally_much_to_do(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    """Parts of a validation split differ: nobody hangs, nobody leaves out anything."""
    found = results(processes, tmp_path, 3, uneven_whole)
    assert found == [[list(range(3 * rank)), False] for rank in range(3)]


def test_a_rank_that_is_through_still_stops_the_others(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    """One has no item, one has three, one has six: all stop in the first round."""
    found = results(processes, tmp_path, 3, uneven_and_stopped)
    assert found == [[[], True], [[0], True], [[0], True]]


def nested(rank: int, agreement: Agreement, stop: StopSignal) -> Any:
    """A validation within a step: what stops the inner one stops the outer one."""
    seen = []
    for step in agreement.until_stopped(range(10)):
        for batch in agreement.until_stopped(range(3 + rank)):
            if (rank, step, batch) == (1, 1, 0):
                stop.obey()
            seen.append((step, batch))
        if agreement.stopped:
            assert step == 1
    return len(seen), agreement.stopped


def test_a_signal_in_validation_stops_training(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    """Both ranks' first validations are whole, the second ends after two batches."""
    assert results(processes, tmp_path, 2, nested) == [[3 + 2, True], [4 + 2, True]]


def lose(rank: int, agreement: Agreement, stop: StopSignal) -> Any:
    """Rank 1 dies in its second item."""
    try:
        for item in agreement.until_stopped(range(100)):
            if (rank, item) == (1, 1):
                os._exit(9)
    except TrainingError as error:
        return str(error)


def test_a_lost_rank_is_an_error(processes: ForkServerContext, tmp_path: Path) -> None:
    """The TERM that one may get then is torchrun's answer: nobody saves alone."""
    (said,) = results(processes, tmp_path, 2, lose)
    assert "another rank is gone, or has stalled for 0:09:30. Nothing is saved" in said


@pytest.mark.parametrize("items", [0, 1, 5])
def test_alone(items: int) -> None:
    """Without other ranks: all items, or those up to the signal."""
    agreement, stop = make()
    assert list(agreement.until_stopped(range(items))) == list(range(items))
    assert not agreement.stopped
    for _ in agreement.until_stopped(range(5)):
        stop.obey()
    assert agreement.stopped
    assert list(agreement.until_stopped(range(5))) == []
