"""Train on 30 classes of real drawings and measure the test split: make bench-real.

The last line is JSON. Needs the local slice of official bitmaps: QUICKDRAW_REAL_DATA, by default
../shared/quickdraw. Results are recorded in benchmarks/results/real_30.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from quickdraw_dist.data.drawings.classes import official_names

DRAWINGS_PER_CLASS = 2_500


def classes_of(bitmaps: Path) -> list[str]:
    """The classes with 2,500 drawings, in official order."""
    return [
        name
        for name in official_names()
        if (bitmaps / f"{name}.npy").exists()
        and len(np.load(bitmaps / f"{name}.npy", mmap_mode="r")) == DRAWINGS_PER_CLASS
    ]


def main() -> None:
    """Shard, train, evaluate; each a command that a user could type."""
    parser = argparse.ArgumentParser("make bench-real", description=__doc__)
    parser.add_argument("--folder", default="runs/bench-real", help="where everything goes, anew")
    parser.add_argument("--ranks", type=int, default=max(1, torch.cuda.device_count()))
    arguments, settings = parser.parse_known_args()
    bitmaps = Path(os.environ.get("QUICKDRAW_REAL_DATA", "../shared/quickdraw"), "numpy_bitmap")
    if not bitmaps.is_dir():
        sys.exit(f"error: no real drawings at {bitmaps}; set QUICKDRAW_REAL_DATA to their folder")
    shutil.rmtree(arguments.folder, ignore_errors=True)
    shards, output = f"{arguments.folder}/shards", f"{arguments.folder}/run"
    common = ["--config", "configs/real_30.yaml", *settings]
    names = ["--shard.classes", *classes_of(bitmaps)]
    run("jobs.shard", "--source", str(bitmaps), "--dest", shards, *common, *names)
    started = time.monotonic()
    torchrun = ["torch.distributed.run", f"--nproc_per_node={arguments.ranks}", "-m"]
    run(
        *(torchrun if arguments.ranks > 1 else []),
        *("quickdraw_dist.train", "--data", shards, "--output", output, *common),
    )
    seconds = time.monotonic() - started
    metrics = run(
        *("jobs.evaluate", "--checkpoint", output, "--data", shards, "--split", "test", *common),
        capture=True,
    )
    measured = json.loads(metrics.splitlines()[-1])
    lines = Path(output, "metrics.jsonl").read_text().splitlines()
    rates = [r["drawings_per_second"] for r in map(json.loads, lines) if r["kind"] == "train"]
    print(
        json.dumps(
            {
                "top1": measured["top1"], "map3": measured["map3"],
                "train_seconds": round(seconds, 1),
                "drawings_per_second": round(float(np.median(rates)), 1),
                "test_drawings": measured["drawings"], "ranks": arguments.ranks,
                "cores": os.cpu_count(), "machine": platform.machine(),
                "torch": torch.__version__,
            }
        )
    )  # fmt: skip


def run(*command: str, capture: bool = False) -> str:
    """python -m command, shown; its failure is ours."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env={"OMP_NUM_THREADS": "1"} | os.environ,
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


if __name__ == "__main__":
    main()
