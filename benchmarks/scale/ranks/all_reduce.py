"""Time all-reduce alone: torchrun --nproc_per_node=2 -m benchmarks.scale.ranks.all_reduce BYTES."""

from __future__ import annotations

import statistics
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

_REPEATS = 30
_WARM_UP = 3


def main(size: int) -> None:
    """Print the median milliseconds of an all-reduce of `size` bytes over gloo."""
    dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    values, seconds = torch.zeros(size // 4), []
    for _ in range(_WARM_UP + _REPEATS):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(values)
        seconds.append(time.perf_counter() - started)
    if dist.get_rank() == 0:
        print(1e3 * statistics.median(seconds[_WARM_UP:]), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]))
