"""One, two and four ranks on one machine, and arithmetic for 8 to 512 GPUs: make bench-scaling.

The same run with 1, 2 and 4 gloo ranks on the CPU: the order digest must be the same, and an
all-reduce of the gradients is timed alone to see its share of a step. What follows for many GPUs is
a model (`model.py`), not a result: from the step of one GPU, measured at two batch sizes where
there is one, otherwise assumed, and the bytes of an all-reduce. The last line is JSON; --page
writes benchmarks/results/scaling.md.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from pathlib import Path

import torch

from benchmarks.measure import (
    CLASSES,
    Metrics,
    flags,
    last_checkpoint,
    parser,
    publish,
    run_case,
    run_module,
    synthetic_source,
    train_records,
)
from benchmarks.scale.ranks.model import (
    EPOCH_DRAWINGS,
    Links,
    Step,
    all_reduce_seconds,
    efficiency,
    fit,
)
from benchmarks.scale.ranks.page import page
from quickdraw_dist import models
from quickdraw_dist.base.settings import Model

RANKS = (1, 2, 4)
GPUS = (8, 16, 32, 64, 128, 256, 512)
ASSUMED = Step(1e-3, 300_000)
"""A GPU's step, where there is no GPU to measure."""
PAGE = "scaling.md"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def main() -> None:
    """Run with every number of ranks and print the table; exit with 1 when the order differs."""
    arguments = parser("bench-scaling", __doc__, PAGE)
    for option, default, text in (
        ("drawings", 8_192, "drawings per epoch; a run is one epoch"),
        ("batch", 256, "global batch"),
        ("width", 16, "width of SketchCNN on the CPU"),
        ("gpu-batch", 4_096, "model: batch per GPU, where it stays the same"),
        ("global-batch", 65_536, "model: global batch, where it stays the same"),
    ):
        arguments.add_argument(f"--{option}", type=int, default=default, help=f"{text} [{default}]")
    options = arguments.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    _shard(options.folder / "shards", options.drawings)
    results = {ranks: _measure(options, ranks) for ranks in RANKS}
    size = gradient_bytes(64)
    measured = torch.cuda.is_available()
    step = _gpu_step(options.folder) if measured else ASSUMED
    rows = modelled(step, size, Links(), options.gpu_batch, options.global_batch)
    about = "Measured at two batch sizes on a GPU here" if measured else "Assumed"
    equal = len({result["order_digest"] for result in results.values()}) == 1
    metrics = {"digest_equal": equal, "ranks": results, "gradient_bytes": size, "model": rows}
    publish(options, PAGE, page(options, results, about, step, size, rows), metrics)
    sys.exit(0 if equal else 1)


def gradient_bytes(width: int) -> int:
    """Bytes of SketchCNN's gradients in an all-reduce: fp32 at any `train.precision`."""
    network = models.build(Model(width=width), CLASSES)
    return 4 * sum(p.numel() for p in network.parameters())


def modelled(
    step: Step, size: int, links: Links, gpu_batch: int, global_batch: int
) -> dict[int, Metrics]:
    """Compute, per number of GPUs, the all-reduce and the least and most share of linear scaling.
    `growing`: the batch per GPU stays the same; `fixed`: the global batch does. Pure."""
    rows: dict[int, Metrics] = {}
    for gpus in GPUS:
        seconds = all_reduce_seconds(size, gpus, links)
        growing, fixed = step.seconds(gpu_batch), step.seconds(global_batch / gpus)
        ideal = step.seconds(global_batch) / gpus  # a fixed batch, divided at no cost
        rows[gpus] = {
            "all_reduce_ms": round(seconds * 1e3, 3),
            "growing": [round(share, 3) for share in efficiency(growing, seconds)],
            "fixed": [round(s * ideal / fixed, 3) for s in efficiency(fixed, seconds)],
            "epoch_seconds": round(
                EPOCH_DRAWINGS / (gpus * gpu_batch) * growing / efficiency(growing, seconds)[0], 1
            ),
        }
    return rows


def _measure(options: argparse.Namespace, ranks: int) -> Metrics:
    """Run with `ranks` ranks, then the all-reduce of its gradients alone."""
    output = options.folder / f"run-{ranks}"
    settings = {
        "data": options.folder / "shards", "output": output, "train.epochs": 1,
        "train.global_batch": options.batch, "train.device": "cpu", "train.log_every": 4,
        "model.width": options.width, "metrics.port": 0,
    }  # fmt: skip
    _run_ranks(ranks, "quickdraw_dist.train", *flags(settings))
    rates = [record["drawings_per_second"] for record in train_records(output)]
    rate = statistics.median(rates[1:])
    step_ms = 1e3 * options.batch / rate
    size = gradient_bytes(options.width)
    all_reduce_ms = float(_run_ranks(ranks, "benchmarks.scale.ranks.all_reduce", str(size)))
    return {
        "drawings_per_second": round(rate),
        "step_ms": round(step_ms, 2),
        "all_reduce_ms": round(all_reduce_ms, 2),
        "communication_share": round(all_reduce_ms / step_ms, 4),
        "order_digest": last_checkpoint(output).meta["order_digest"],
    }


def _run_ranks(ranks: int, *command: str) -> str:
    """Run a module under torchrun and return its last line."""
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
    printed = run_module(*torchrun, *command, capture=True, variables=ONE_THREAD)
    return printed.splitlines()[-1]


def _gpu_step(folder: Path) -> Step:
    """Fit the step of one GPU, bf16 and compiled, to runs with a small and a large batch."""
    shards = folder / "gpu-shards"
    _shard(shards, 1_800_000)
    times = []
    for batch in (1_024, 8_192):
        settings = {"train.epochs": 1, "train.global_batch": batch, "train.log_every": 20}
        output = folder / f"gpu-{batch}"
        result = run_case("benchmarks.train_speed.cases", "ours", shards, output, *flags(settings))
        times.append((batch, batch / result["per_second"]))
    return fit(*times)


def _shard(dest: Path, drawings: int) -> None:
    source = ["--source", synthetic_source(drawings), "--dest", str(dest)]
    run_module("jobs.shard", *source, variables=ONE_THREAD)


if __name__ == "__main__":
    main()
