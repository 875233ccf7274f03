"""The whole path in minutes: python -m jobs.demo (or make demo)."""

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
Draws 20 synthetic classes, shards them, trains on two processes, evaluates. Each step prints its
command, so that it can be tried alone and changed; settings given here go to all of them. The
same command again skips what is done.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the three commands that a user would."""
    title = "Synthetic drawings to a report."
    parser = Parser("python -m jobs.demo", title, EPILOG, config="configs/demo.yaml")
    settings, arguments = load(parser, argv, ())
    given = sys.argv[1:] if argv is None else list(argv)
    config = ["--config", arguments.config, *given]
    gpus = torch.cuda.device_count()
    # Apple's GPU has no collectives, so one process has it alone; GPUs are not shared either.
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
    report, figures = output.strip().splitlines()[-2:]
    top1, count = json.loads(figures)["top1"], json.loads(figures)["drawings"]
    print(
        f"\naccuracy on {count:,} test drawings: {top1:.1%}, in {time.monotonic() - started:.0f} s"
    )
    print("pages for a browser:")
    print(f"  the training    {Path(settings.output, PAGE).resolve()}")
    print(f"  the evaluation  {Path(report.removeprefix('report: ')).resolve()}")


def _step(title: str, *command: str, capture: bool = False) -> str:
    """Show and run one command with this Python; stop where it stops."""
    shown = " ".join(f"'{part}'" if set(part) & set("?&") else part for part in command)
    print(f"\n== {title}: python {shown}", flush=True)
    # torchrun sets it per rank, and warns when it has to.
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
