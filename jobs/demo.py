"""Shard, train and evaluate in minutes: python -m jobs.demo (or make demo)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from jobs.command import run
from quickdraw_dist.base.command_line import Parser, load
from quickdraw_dist.run.report.page import PAGE

SOURCE = "synthetic:?classes=20&per_class=1000&seed=7"

EPILOG = """\
Draws 20 synthetic classes, shards them, trains with two processes and evaluates. Each step prints
its command, to be run alone or changed; settings given here are passed to all steps. The same
command again skips what is done.

examples:
  python -m jobs.demo
  python -m jobs.demo --train.epochs 2 --output runs/short
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the three commands and print accuracy and reports."""
    text = "From synthetic drawings to a trained and evaluated model."
    parser = Parser("python -m jobs.demo", text, EPILOG, config="configs/demo.yaml")
    settings, arguments = load(parser, argv, ())
    given = sys.argv[1:] if argv is None else list(argv)
    config = ["--config", arguments.config, *given]
    gpus = torch.cuda.device_count()
    # One process per GPU; Apple's supports no collectives.
    ranks = min(2, gpus) if gpus else 1 if torch.backends.mps.is_available() else 2
    started = time.monotonic()
    _step("1/3 draw and shard", "-m", "jobs.shard", "--source", SOURCE, *config)
    _step(
        f"2/3 train on {ranks} processes",
        # One node never needs its own name, which a laptop may not know.
        *("-m", "torch.distributed.run", "--local-addr=127.0.0.1", f"--nproc_per_node={ranks}"),
        *("-m", "quickdraw_dist.train", *config),
    )
    output = _step("3/3 evaluate", "-m", "jobs.evaluate", *config, capture=True)
    report, metrics = output.strip().splitlines()[-2:]
    top1, count = json.loads(metrics)["top1"], json.loads(metrics)["drawings"]
    print(
        f"\naccuracy on {count:,} test drawings: {top1:.1%}, in {time.monotonic() - started:.0f} s"
    )
    print("reports:")
    print(f"  training    {Path(settings.output, PAGE).resolve()}")
    print(f"  evaluation  {Path(report.removeprefix('report: ')).resolve()}")


def _step(title: str, *command: str, capture: bool = False) -> str:
    """Print a command and run it with this Python; exit with its code if that is not 0."""
    shown = " ".join(f"'{part}'" if set(part) & set("?&") else part for part in command)
    print(f"\n== {title}: python {shown}", flush=True)
    # torchrun would set it itself, with a warning.
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    done = subprocess.run(  # noqa: S603
        [sys.executable, *command], env=environment, text=True,
        stdout=subprocess.PIPE if capture else None, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


if __name__ == "__main__":
    run(main)
