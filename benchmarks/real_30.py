"""Train on 30 classes of real drawings and measure the test split: make bench-real.

Needs the local slice of official bitmaps: QUICKDRAW_REAL_DATA, by default ../shared/quickdraw.
Options other than --folder and --ranks are settings of all three commands. The last line is JSON;
results are recorded by hand in benchmarks/results/real_30.md.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import parser, real_bitmaps, run_module, train_records
from quickdraw_dist.data.drawings.classes import official_names

DRAWINGS_PER_CLASS = 2_500


def main() -> None:
    """Shard, train, evaluate; each is a command that a user could type."""
    arguments = parser("bench-real", __doc__)
    arguments.add_argument("--ranks", type=int, default=max(1, torch.cuda.device_count()))
    options, settings = arguments.parse_known_args()
    bitmaps = real_bitmaps()
    if not bitmaps.is_dir():
        sys.exit(f"error: no real drawings at {bitmaps}. Set QUICKDRAW_REAL_DATA to their folder.")
    shutil.rmtree(options.folder, ignore_errors=True)
    shards, output = str(options.folder / "shards"), str(options.folder / "run")
    settings = ["--config", "configs/real_30.yaml", *settings]
    names = ["--shard.classes", *find_classes(bitmaps)]
    variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    shard = ["jobs.shard", "--source", str(bitmaps), "--dest", shards, *settings, *names]
    run_module(*shard, variables=variables)
    started = time.monotonic()
    torchrun = ["torch.distributed.run", f"--nproc_per_node={options.ranks}", "-m"]
    train = ["quickdraw_dist.train", "--data", shards, "--output", output, *settings]
    run_module(*(torchrun if options.ranks > 1 else []), *train, variables=variables)
    seconds = time.monotonic() - started
    evaluate = ["jobs.evaluate", "--checkpoint", output, "--data", shards, "--split", "test"]
    printed = run_module(*evaluate, *settings, capture=True, variables=variables)
    measured = json.loads(printed.splitlines()[-1])
    rates = [record["drawings_per_second"] for record in train_records(Path(output))]
    print(
        json.dumps(
            {
                "top1": measured["top1"], "map3": measured["map3"],
                "train_seconds": round(seconds, 1),
                "drawings_per_second": round(statistics.median(rates), 1),
                "test_drawings": measured["drawings"], "ranks": options.ranks,
                "cores": os.cpu_count(), "machine": platform.machine(),
                "torch": torch.__version__,
            }
        )
    )  # fmt: skip


def find_classes(bitmaps: Path) -> list[str]:
    """The classes with 2,500 drawings, in official order."""
    return [
        name
        for name in official_names()
        if (bitmaps / f"{name}.npy").exists()
        and len(np.load(bitmaps / f"{name}.npy", mmap_mode="r")) == DRAWINGS_PER_CLASS
    ]


if __name__ == "__main__":
    main()
