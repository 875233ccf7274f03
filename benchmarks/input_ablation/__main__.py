"""Compare what a network gets to see, on real drawings: make bench-input.

Every arm trains with the real command, on equal drawings in an equal order, and differs from the
others in a few settings (`arms.py`). Each run is scored drawing by drawing on what it was not
trained on, so two arms can be compared pair by pair. Runs take turns, one at a time, and each adds
a line to results.jsonl in --folder when it has ended: started again, the command goes on where it
was. Needs the local slice of official files: QUICKDRAW_REAL_DATA, by default ../shared/quickdraw.
The last line is JSON; --page writes benchmarks/results/input_ablation.md from all recorded runs.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from benchmarks.input_ablation import arms
from benchmarks.input_ablation.arms import BITMAPS, COMMON, TASKS, Run, Task
from benchmarks.input_ablation.held_out import score
from benchmarks.input_ablation.page import page, summary
from benchmarks.measure import CLASSES, Metrics, flags, parser, publish, real_bitmaps, run_module
from benchmarks.real_30 import find_classes

PAGE = "input_ablation.md"
RESULTS = "results.jsonl"
VALIDATION = 0.05
"""Share of every class that a run measures after each epoch: it takes time from training."""


def main() -> None:
    """Run what is not recorded yet, then show everything that is."""
    arguments = parser("bench-input", __doc__, PAGE, kept=True)
    arguments.add_argument("--seeds", type=int, default=2, help="runs of every arm [2]")
    tasks = [task.name for task in TASKS]
    names = [arm.name for arm in (*arms.AUGMENTATIONS, *arms.INPUTS)]
    arguments.add_argument("--tasks", nargs="*", choices=tasks, default=tasks, help="[all]")
    arguments.add_argument("--arms", nargs="*", choices=names, default=names, help="[all]")
    options = arguments.parse_args()
    chosen = (task for task in TASKS if task.name in options.tasks)
    runs = arms.plan(chosen, options.arms, options.seeds)
    file = options.folder / RESULTS
    recorded = {key(found) for found in read(file)}
    for run in tqdm(runs, unit=" runs"):
        if (run.task.name, run.arm.name, run.seed) not in recorded:
            line = json.dumps(measure(options.folder, run))
            with file.open("a", encoding="utf-8") as out:
                out.write(line + "\n")
    records = read(file)
    publish(options, PAGE, page(records), summary(records))


def read(file: Path) -> list[Metrics]:
    """Return all records, oldest first."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def key(record: Metrics) -> tuple[str, str, int]:
    """Return what a record is of: task, arm and seed."""
    return record["task"], record["arm"], record["seed"]


def measure(folder: Path, run: Run) -> Metrics:
    """Train, or resume, one run and score it."""
    data = folder / f"shards-{run.task.name}" / run.arm.content
    _shard(data, run.task, run.arm.content)
    output = folder / "runs" / run.task.name / run.arm.name / str(run.seed)
    own = {
        "data": data, "output": output, "train.epochs": run.task.epochs, "train.seed": run.seed
    }  # fmt: skip
    settings = flags(COMMON | own | run.arm.settings)
    resumed, before = output.exists(), _core_seconds()
    run_module("quickdraw_dist.train", *settings, variables=_one_thread())
    seconds = None if resumed else _core_seconds() - before
    return record(run, output, data, time.strftime("%Y-%m-%d"), seconds)


def record(run: Run, output: Path, data: Path, date: str, core_seconds: float | None) -> Metrics:
    """Return the record of a run that has ended.

    Args:
        core_seconds: CPU time of the whole run; None: not known, as of one that was resumed.
    """
    return {
        "task": run.task.name,
        "arm": run.arm.name,
        "seed": run.seed,
        "content": run.arm.content,
        "settings": run.arm.settings,
        "date": date,
        "core_seconds": core_seconds,
        **score(output, data),
    }


def _core_seconds() -> float:
    """CPU time of the commands that this process has run."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _shard(dest: Path, task: Task, content: str) -> None:
    """Make the shards of a task, unless they are complete."""
    source = real_bitmaps().parent / task.source
    if not source.is_dir():
        sys.exit(f"error: no real drawings at {source}. Set QUICKDRAW_REAL_DATA to their folder.")
    settings = {
        "shard.content": content,
        "shard.drawings_per_shard": 16_384,
        "shard.val_fraction": VALIDATION,
        "shard.test_fraction": round(task.held_out - VALIDATION, 3),
    }
    some = ["--shard.classes", *_classes(task)] if task.classes < CLASSES else []
    command = ["--source", str(source), "--dest", str(dest), *flags(settings), *some]
    run_module("jobs.shard", *command)


def _classes(task: Task) -> list[str]:
    """The classes of a task that has not all of them."""
    if task.source == BITMAPS:
        return find_classes(real_bitmaps())
    with (real_bitmaps().parent / "files.csv").open(encoding="utf-8", newline="") as file:
        lines = {row["word"]: int(row["simplified_lines"]) for row in csv.DictReader(file)}
    return largest(lines, below=1_000)[: task.classes]


def largest(drawings: Mapping[str, int], below: int) -> list[str]:
    """Return the classes with less than `below` drawings, those with most first, ties by name."""
    some = [name for name, count in drawings.items() if count < below]
    return sorted(some, key=lambda name: (-drawings[name], name))


def _one_thread() -> dict[str, str]:
    """One thread per run, unless the environment says otherwise: at this width two gain nothing."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


if __name__ == "__main__":
    main()
