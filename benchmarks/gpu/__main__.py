"""Everything that a GPU has to prove, in the minutes that one is at hand: make bench-gpu.

Steps in order of worth, each in processes of its own with a time limit; results.json and a log per
step, NN-STEP.log, in --out. A step that fails or hangs costs only itself, one that no longer fits
is skipped. The steps:
facts       card, versions, rates of copies and matrix products
smoke       20 training steps in every precision and compile mode, one rank with NCCL, resident,
            stopped and resumed, evaluated
tests       the tests marked cuda
speed       benchmarks.train_speed, with a profile of the training step
full-size   benchmarks.scale.full_size: 50,426,266 drawings, an epoch streamed and an epoch resident
strokes     the same with pen strokes
slow-tests  the slow ones of the tests marked cuda
The same command again runs the steps that are not finished, and --only STEP runs those again.
--cpu runs everything in miniature without a GPU. --page DIR writes benchmarks/results/gpu.md and
the README's table from DIR/results.json. Linux only. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch

from benchmarks.gpu import page, record
from benchmarks.gpu.plan import STEPS, allot
from benchmarks.gpu.steps import Benchmark
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.distributed.exits import report

_LAST_SECONDS = 8.0
"""Kept for the end: killing the last step's processes and recording its results."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps, or write the pages; return 1 if a step failed."""
    began = time.monotonic()
    options = _parse(argv)
    try:
        if options.page:
            page.write_pages(record.read_all(options.page), Path(__file__).parents[2])
            return 0
        check(options, torch.cuda.is_available())
    except RefusedError as error:
        return report(error)
    signal.signal(signal.SIGTERM, _interrupt)
    interrupted = _run_all(options, began + 60 * options.minutes - _LAST_SECONDS)
    records = record.read_all(options.out)
    summary = {
        "cpu": options.cpu,
        "seconds": round(time.monotonic() - began, 1),
        "steps": {name: found.brief for name, found in records.items()},
    }
    print(json.dumps(summary))
    good = all(found.status in (record.PASSED, record.SKIPPED) for found in records.values())
    return 0 if good and not interrupted else 1


def _run_all(options: argparse.Namespace, end: float) -> bool:
    """Run the steps that are due until `end`, of time.monotonic(); return whether a signal ended
    them."""
    benchmark = Benchmark(options.out, options.folder, options.cpu)
    steps = [replace(step, least=0, most=math.inf) for step in STEPS] if options.cpu else STEPS
    due = [step for step in steps if benchmark.is_due(step.name, options.only)]
    try:
        for index, step in enumerate(due):
            limits = allot(end - time.monotonic(), due[index:])
            if step.name in limits:
                benchmark.run(step.name, limits[step.name])
            else:
                benchmark.skip(step)
    except KeyboardInterrupt:
        return True
    return False


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    arguments = argparse.ArgumentParser(
        "make bench-gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names, home = [step.name for step in STEPS], Path("runs/bench-gpu")
    for option, default, text in (
        ("--out", home / "results", "results and logs"),
        ("--folder", home / "work", "shards and runs; deleted after each step"),
    ):
        arguments.add_argument(option, type=Path, default=default, help=f"{text} [{default}]")
    arguments.add_argument("--minutes", type=float, help="for everything [8; with --cpu 60]")
    arguments.add_argument(
        "--only", nargs="+", choices=names, default=[], metavar="STEP",
        help=f"run these, finished or not: {', '.join(names)}",
    )  # fmt: skip
    arguments.add_argument("--cpu", action="store_true", help="in miniature, without a GPU")
    arguments.add_argument("--page", type=Path, metavar="DIR", help="write the pages, run nothing")
    options = arguments.parse_args(argv)
    options.minutes = options.minutes or (60 if options.cpu else 8)
    return options


def check(options: argparse.Namespace, on_gpu: bool) -> None:
    """Check that the results can be measured, and belong to those that are there.

    Raises:
        RefusedError: no GPU, or a folder with results of the other kind.
    """
    if not options.cpu and not on_gpu:
        raise RefusedError("bench-gpu", None, "no CUDA device here", "Use --cpu for a miniature")
    if any(found.cpu != options.cpu for found in record.read_all(options.out).values()):
        kind = "on a GPU" if options.cpu else "in miniature, with --cpu"
        problem = f"has results that were measured {kind}"
        raise RefusedError("--out", options.out, problem, "Use another folder")


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Leave as on Ctrl-C: the running step's processes are killed and its results are recorded."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
