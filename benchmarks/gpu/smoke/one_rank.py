"""Train with one rank that has joined a process group: python -m benchmarks.gpu.one_rank SETTINGS.

A run of one rank joins nobody, and so it uses neither DDP nor collectives. Here it meets itself
first, with NCCL on a GPU and gloo elsewhere, and trains as a rank among others does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from quickdraw_dist import train
from quickdraw_dist.base.command_line import read_settings
from quickdraw_dist.distributed import watchdog
from quickdraw_dist.distributed.exits import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Join and train; return the exit code of the training."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(0)
        watchdog.record_collectives(read_settings(argv).output)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", store=dist.HashStore(), rank=0, world_size=1
    )
    code = train.main(argv)
    print(f"one rank with {dist.get_backend()}: exit code {code}", flush=True)
    return code


if __name__ == "__main__":
    leave(main())
