"""Compare what a network gets to see, on real drawings: make bench-input.

Every arm trains with the real command, on equal drawings in an equal order, and differs from the
others in a few settings (`arms.py`). Each run is scored drawing by drawing on what it was not
trained on, so two arms can be compared pair by pair. Runs take turns, one at a time, and each adds
a line to results.jsonl in --folder when it has ended: started again, the command goes on where it
was. Needs the local slice of official bitmaps: QUICKDRAW_REAL_DATA, by default ../shared/quickdraw.
The last line is JSON; --page writes benchmarks/results/input_ablation.md from all recorded runs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from benchmarks.input_ablation.arms import ARMS, COMMON, TASKS, Run, Task, plan
from benchmarks.input_ablation.held_out import score
from benchmarks.input_ablation.page import page, summary
from benchmarks.measure import Metrics, flags, parser, publish, real_bitmaps, run_module
from benchmarks.real_30 import find_classes

PAGE = "input_ablation.md"
RESULTS = "results.jsonl"
VALIDATION = 0.05
"""Share of every class that a run measures after each epoch: it takes time from training."""


def main() -> None:
    """Run what is not recorded yet, then show everything that is."""
    arguments = parser("bench-input", __doc__, PAGE, kept=True)
    arguments.add_argument("--seeds", type=int, default=2, help="runs of every arm [2]")
    tasks, arms = [task.name for task in TASKS], [arm.name for arm in ARMS]
    arguments.add_argument("--tasks", nargs="*", choices=tasks, default=tasks, help="[all]")
    arguments.add_argument("--arms", nargs="*", choices=arms, default=arms, help="[all]")
    options = arguments.parse_args()
    chosen = plan(
        (task for task in TASKS if task.name in options.tasks),
        (arm for arm in ARMS if arm.name in options.arms),
        options.seeds,
    )
    file = options.folder / RESULTS
    recorded = {key(record) for record in read(file)}
    for run in tqdm(chosen, unit=" runs"):
        if (run.task.name, run.arm.name, run.seed) not in recorded:
            record = measure(options.folder, run)
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(record) + "\n")
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
    data = folder / f"shards-{run.task.name}"
    _shard(data, run.task)
    output = folder / "runs" / run.task.name / run.arm.name / str(run.seed)
    own = {
        "data": data, "output": output, "train.epochs": run.task.epochs, "train.seed": run.seed
    }  # fmt: skip
    settings = flags(COMMON | own | run.arm.settings)
    run_module("quickdraw_dist.train", *settings, variables=_one_thread())
    return {
        "task": run.task.name,
        "arm": run.arm.name,
        "seed": run.seed,
        "settings": run.arm.settings,
        "date": time.strftime("%Y-%m-%d"),
        **score(output, data),
    }


def _shard(dest: Path, task: Task) -> None:
    """Make the shards of a task, unless they are complete."""
    bitmaps = real_bitmaps()
    if not bitmaps.is_dir():
        sys.exit(f"error: no real drawings at {bitmaps}. Set QUICKDRAW_REAL_DATA to their folder.")
    settings = {
        "shard.drawings_per_shard": 16_384,
        "shard.val_fraction": VALIDATION,
        "shard.test_fraction": round(task.held_out - VALIDATION, 3),
    }
    some = ["--shard.classes", *find_classes(bitmaps)] if task.classes == 30 else []
    command = ["--source", str(bitmaps), "--dest", str(dest), *flags(settings), *some]
    run_module("jobs.shard", *command)


def _one_thread() -> dict[str, str]:
    """One thread per run, unless the environment says otherwise: at this width two gain nothing."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


if __name__ == "__main__":
    main()
