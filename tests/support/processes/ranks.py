"""Real ranks in tests: processes with a gloo group of their own, started in milliseconds."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch.distributed as dist

from quickdraw_dist.distributed.exits import leave

_TIMEOUT = timedelta(minutes=5)
"""For a rank that waits for another one: a fault ends as an error instead of a hanging test."""


def run_ranks(
    processes: ForkServerContext, size: int, folder: Path, task: Callable[..., Any], *arguments: Any
) -> list[Any]:
    """Return what `task(rank, size, *arguments)` returns on each of `size` ranks, all of which must
    end well.

    `folder` must be empty. The ranks' working folder is the caller's.
    """
    folder.mkdir(exist_ok=True)
    ranks = [
        processes.Process(target=_run, args=(rank, size, str(folder), task, arguments))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * size
    return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(size)]


def _run(
    rank: int, size: int, folder: str, task: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    meeting = Path(folder, "meeting").as_uri()
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=size, timeout=_TIMEOUT
    )
    result = task(rank, size, *arguments)
    Path(folder, f"result-{rank}").write_bytes(pickle.dumps(result))
    dist.barrier()
    # Not by returning: then Python frees DDP's reducer, whose end waits, holding the interpreter's
    # lock, for a gloo thread that waits for that lock.
    leave(0)
