"""A hundred kills over one short run, and the same result as without: make chaos.

A training run of two ranks is started through the launcher, and something of it is killed
(SIGKILL): a rank, torchrun, the launcher, or everything at once, in start-up or in training, at
times drawn from a seed; now and then the launcher gets a SIGTERM instead. After each blow no
process of the run may live on. The same command is started again, until the run has ended. Then
its order digest, weights, averages and optimizer state are compared, bit for bit, with those of a
run that nobody touched. Linux only. The last line is JSON; --page writes
benchmarks/results/chaos.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.chaos import page as chaos_page
from benchmarks.chaos.plan import Blow, Report, epochs_for, plan
from benchmarks.chaos.run import Run
from quickdraw_dist.data.shards import manifest
from quickdraw_dist.run.checkpoint import files as checkpoint
from quickdraw_dist.run.checkpoint.files import Checkpoint

GLOBAL_BATCH = 96
SAVE_EVERY_STEPS = 3


def main() -> None:
    """Two runs, one of them under fire; exit code 1 when they differ."""
    parser = argparse.ArgumentParser("make chaos", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos"), help="anew")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", action="store_true", help="write benchmarks/results/chaos.md")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    blows = plan(options.seed, options.kills)
    steps = _shard(options.folder / "shards")
    epochs = epochs_for(blows, steps)
    about = f"Seed {options.seed}: two ranks, {epochs} epochs of {steps} steps, "
    about += f"a checkpoint every {SAVE_EVERY_STEPS}"
    print(about, flush=True)
    started = time.monotonic()
    with Run(_command(options.folder, "quiet", epochs)) as quiet:
        start_up_seconds = quiet.wait_for_step(1)
        quiet.finish()
    whole = time.monotonic() - started
    print(f"untouched: {whole:.0f} s, the first step after {start_up_seconds:.1f} s", flush=True)
    started = time.monotonic()
    command = _command(options.folder, "fire", epochs)
    reports = _under_fire(command, blows, start_up_seconds)
    with Run(command) as last:
        last.finish()
    seconds = time.monotonic() - started
    quiet_end, end = (_end(options.folder / name) for name in ("quiet", "fire"))
    metrics = {
        "kills": sum(report.target != "TERM" for report in reports),
        "terms": sum(report.target == "TERM" for report in reports),
        "digest_equal": quiet_end.meta["order_digest"] == end.meta["order_digest"],
        "weights_equal": quiet_end.meta["step"] == end.meta["step"] == epochs * steps
        and same(_state(quiet_end), _state(end)),
        "survivors": sum(report.survivors for report in reports),
        "unexpected_exit_codes": sum(not report.expected for report in reports),
        "restarts": end.meta["restarts"],
        "seconds": round(seconds),
        "seconds_untouched": round(whole),
    }
    text = chaos_page.page(about, reports, last.resumed, metrics)
    if options.page:
        (Path(__file__).parents[1] / "results" / "chaos.md").write_text(text, encoding="utf-8")
    print(chaos_page.summary(reports, last.resumed))
    print(json.dumps(metrics))
    right = metrics["digest_equal"] and metrics["weights_equal"] and not metrics["survivors"]
    sys.exit(0 if right and metrics["kills"] == options.kills else 1)


def _under_fire(command: list[str], blows: list[Blow], start_up_seconds: float) -> list[Report]:
    """Start the command as often as there are blows."""
    reports, began = list[Report](), time.monotonic()
    for blow in blows:
        with Run(command) as run:
            report = run.strike(blow, start_up_seconds, time.monotonic() - began)
        reports.append(report)
        print(f"{len(reports):3}  {report}", flush=True)
        if report.survivors:
            sys.exit("error: a process of the run lives on after that; see above")
    return reports


def _shard(dest: Path) -> int:
    """A small synthetic dataset; returns the steps of an epoch."""
    source = ["--source", "synthetic:?classes=6&per_class=300&seed=3", "--processes", "1"]
    sizes = ["--shard.drawings_per_shard", "400", "--shard.block", "64"]
    command = [sys.executable, "-m", "jobs.shard", *source, "--dest", str(dest), *sizes]
    subprocess.run(command, check=True, capture_output=True)
    return manifest.read(str(dest)).drawings("train") // GLOBAL_BATCH


def _command(folder: Path, name: str, epochs: int) -> list[str]:
    """What is started again and again: two ranks, accumulation, a checkpoint every few steps."""
    settings = {
        "data": folder / "shards", "output": folder / name,
        "train.epochs": epochs, "train.global_batch": GLOBAL_BATCH, "train.micro_batch": 20,
        "train.deterministic": True, "train.device": "cpu", "train.log_every": 1,
        "model.width": 4, "checkpoint.every_drawings": SAVE_EVERY_STEPS * GLOBAL_BATCH,
        "optimizer.ema_half_life_drawings": 1_000, "metrics.port": 0, "metrics.report": False,
    }  # fmt: skip
    launcher = [sys.executable, "-m", "quickdraw_dist.launch", "--standalone"]
    arguments = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    return [*launcher, "--nproc_per_node=2", "-m", "quickdraw_dist.train", *arguments]


def _end(run: Path) -> Checkpoint:
    """The last checkpoint of a run."""
    found = checkpoint.newest(str(run))
    assert found is not None, "the run has ended well"
    return checkpoint.load(found.url)


def _state(end: Checkpoint) -> list[object]:
    return [end.weights, end.average, end.state]


def same(one: object, other: object) -> bool:
    """Whether two trees of tensors and values are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same(value, other[key]) for key, value in one.items())
        )
    if isinstance(one, list | tuple):
        return (
            isinstance(other, list | tuple)
            and len(one) == len(other)
            and all(map(same, one, other))
        )
    return one == other


if __name__ == "__main__":
    main()
