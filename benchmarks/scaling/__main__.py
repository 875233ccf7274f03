"""One, two and four ranks on one machine, and arithmetic for 8 to 512 GPUs: make bench-scaling.

The same run with 1, 2 and 4 gloo ranks on the processor: the order digest must be the same, and
an all-reduce of the gradients is timed by itself to see what share of a step it is. What follows
for many GPUs is a model (`scaling_model.py`), not a result: from the step of one GPU, measured at
two batch sizes where there is one, else assumed, and the bytes of an all-reduce. The last line is
JSON; --page writes benchmarks/results/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.measure import Metrics, run_case
from benchmarks.scaling import page as scaling_page
from benchmarks.scaling.model import (
    EPOCH_DRAWINGS,
    Links,
    Step,
    all_reduce_seconds,
    efficiency,
    fit,
)
from quickdraw_dist import models
from quickdraw_dist.base.settings import Model
from quickdraw_dist.run.checkpoint import files as checkpoint

RANKS = (1, 2, 4)
GPUS = (8, 16, 32, 64, 128, 256, 512)
CLASSES = 345
ASSUMED = Step(1e-3, 300_000)
"""Of a GPU, where there is none to measure."""


def main() -> None:
    """Run, compare, say it; exit code 1 when the order differs."""
    parser = argparse.ArgumentParser("make bench-scaling", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-scaling"), help="anew")
    parser.add_argument("--drawings", type=int, default=8_192, help="of an epoch, one a run")
    parser.add_argument("--batch", type=int, default=256, help="the global batch")
    parser.add_argument("--width", type=int, default=16, help="of SketchCNN on the processor")
    parser.add_argument("--gpu-batch", type=int, default=4_096, help="of a GPU, as ranks grow")
    parser.add_argument("--global-batch", type=int, default=65_536, help="kept, as ranks grow")
    parser.add_argument("--page", action="store_true", help="write benchmarks/results/scaling.md")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    shards = options.folder / "shards"
    each = -(-options.drawings * 10 // (9 * CLASSES)) + 1
    source = f"synthetic:?classes={CLASSES}&per_class={each}&seed=7"
    _run("jobs.shard", "--source", source, "--dest", str(shards))
    results = {ranks: _measure(options, ranks) for ranks in RANKS}
    size = gradient_bytes(64)
    measured = torch.cuda.is_available()
    step = _gpu_step(options.folder) if measured else ASSUMED
    rows = modelled(step, size, Links(), options.gpu_batch, options.global_batch)
    about = "Measured at two batch sizes on a GPU here" if measured else "Assumed"
    text = scaling_page.page(options, results, about, step, size, rows)
    print(text)
    if options.page:
        (Path(__file__).parents[1] / "results" / "scaling.md").write_text(text, encoding="utf-8")
    equal = len({result["order_digest"] for result in results.values()}) == 1
    metrics = {"digest_equal": equal, "ranks": results, "gradient_bytes": size, "model": rows}
    print(json.dumps(metrics))
    sys.exit(0 if equal else 1)


def gradient_bytes(width: int) -> int:
    """What an all-reduce of SketchCNN's gradients carries: fp32, whatever the forward pass."""
    network = models.build(Model(width=width), CLASSES)
    return 4 * sum(p.numel() for p in network.parameters())


def modelled(
    step: Step, size: int, links: Links, gpu_batch: int, global_batch: int
) -> dict[int, Metrics]:
    """For every number of GPUs, the all-reduce and what is left of linear scaling, least and
    most; pure. `growing`: the batch of a GPU stays; `fixed`: the global batch does."""
    rows: dict[int, Metrics] = {}
    for gpus in GPUS:
        seconds = all_reduce_seconds(size, gpus, links)
        growing, fixed = step.seconds(gpu_batch), step.seconds(global_batch / gpus)
        alone = step.seconds(global_batch) / gpus  # of a fixed batch, if that divided for nothing
        rows[gpus] = {
            "all_reduce_ms": round(seconds * 1e3, 3),
            "growing": [round(share, 3) for share in efficiency(growing, seconds)],
            "fixed": [round(s * alone / fixed, 3) for s in efficiency(fixed, seconds)],
            "epoch_seconds": round(
                EPOCH_DRAWINGS / (gpus * gpu_batch) * growing / efficiency(growing, seconds)[0], 1
            ),
        }
    return rows


def _measure(options: argparse.Namespace, ranks: int) -> Metrics:
    """A run with so many ranks, and the all-reduce of its gradients alone."""
    output = options.folder / f"run-{ranks}"
    settings = {
        "data": options.folder / "shards", "output": output, "train.epochs": 1,
        "train.global_batch": options.batch, "train.device": "cpu", "train.log_every": 4,
        "model.width": options.width, "metrics.port": 0,
    }  # fmt: skip
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
    arguments = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    _run(*torchrun, "quickdraw_dist.train", *arguments)
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    rate = statistics.median(record["drawings_per_second"] for record in records[1:])
    found = checkpoint.newest(str(output))
    assert found is not None, "the run has ended well"
    step_ms = 1e3 * options.batch / rate
    size = gradient_bytes(options.width)
    alone = float(_run(*torchrun, "benchmarks.scaling.all_reduce", str(size)) or 0)
    return {
        "drawings_per_second": round(rate),
        "step_ms": round(step_ms, 2),
        "all_reduce_ms": round(alone, 2),
        "communication_share": round(alone / step_ms, 4),
        "order_digest": checkpoint.load(found.url).meta["order_digest"],
    }


def _gpu_step(folder: Path) -> Step:
    """Of one GPU in bf16, compiled, from a run each with a small and a large batch."""
    shards = folder / "gpu-shards"
    source = f"synthetic:?classes={CLASSES}&per_class=6000&seed=7&pool=64"
    _run("jobs.shard", "--source", source, "--dest", str(shards))
    times = []
    for batch in (1_024, 8_192):
        settings = ["--train.epochs", 1, "--train.global_batch", batch, "--train.log_every", 20]
        output = folder / f"gpu-{batch}"
        result = run_case("benchmarks.train_speed.cases", "ours", shards, output, *settings)
        times.append((batch, batch / result["per_second"]))
    return fit(*times)


def _run(*command: str) -> str:
    """python -m command; its last line."""
    done = subprocess.run(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout.splitlines()[-1] if done.stdout else ""


if __name__ == "__main__":
    main()
