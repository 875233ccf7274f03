"""The rank that the others wait for is found by its own work, which all-reduced steps hide."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from quickdraw_dist.base.telemetry.metrics import REGISTRY
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.distributed.stragglers import Stragglers, WorkClock, slowest
from tests.support.processes.ranks import run_ranks

CPU = torch.device("cpu")


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=20), st.data())
def test_slowest_is_the_one_with_most_work(seconds: list[float], data: st.DataObject) -> None:
    """And its ratio is to a rank in the middle, which other slow ranks do not move much."""
    rank, ratio = slowest(seconds)
    assert seconds[rank] == max(seconds)
    assert ratio >= 1
    assert slowest([1.0, 1.0, 5.0, 1.0, 1.2]) == (2, 5.0)


class Slow(torch.autograd.Function):
    """Passes a tensor on; its backward pass multiplies matrices for a while."""

    @staticmethod
    def forward(ctx: object, inputs: torch.Tensor, rounds: int) -> torch.Tensor:
        ctx.rounds = rounds  # type: ignore[attr-defined]
        return inputs.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        matrix = torch.ones(256, 256)
        for _ in range(ctx.rounds):  # type: ignore[attr-defined]
            matrix = matrix @ matrix / 256
        return gradient * matrix[0, 0], None


def one_rank(rank: int, size: int) -> Any:
    """Steps of which rank 1 has many times the work."""
    torch.set_num_threads(1)
    network = nn.Linear(4, 4)
    ddp = DistributedDataParallel(network)
    clock, stragglers = WorkClock(network, CPU), Stragglers(World(rank, size, rank, size, CPU))
    looks = []
    for _ in range(2):
        for _ in range(3):
            clock.begin()
            Slow.apply(ddp(torch.ones(2, 4)), 400 if rank == 1 else 1).sum().backward()
            clock.end()
        own = clock.mean_seconds()
        looks.append((own, stragglers.compare_ranks(own)))
    gauges = [
        REGISTRY.get_sample_value("quickdraw_rank_step_seconds", {"rank": str(other)})
        for other in range(size)
    ]
    slow = REGISTRY.get_sample_value("quickdraw_slowest_rank")
    return looks, gauges, slow


def test_the_slow_rank_is_told_once(
    processes: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> None:
    """All ranks' steps take as long, since the gradients meet; their own work does not."""
    seen = run_ranks(processes, 3, tmp_path, one_rank)
    for looks, _, _ in seen:
        (_, first), (_, second) = looks
        assert len(first) == 1 and first[0].startswith("rank 1 is slow:")
        assert second == []  # said already
    own = [looks[-1][0] for looks, _, _ in seen]
    assert own[1] > 3 * max(own[0], own[2])
    _, gauges, slow = seen[0]
    assert gauges == own and slow == 1
    assert seen[1][1] == [None] * 3  # only the first rank's endpoint has them
