"""A hundred kills over one short run, and the same result as without: make chaos.

A training run of two ranks is started through the launcher, and some of its processes get a
SIGKILL: a rank, torchrun, the launcher, or all of them, during start-up or during training, at
times drawn from a seed; in one of eleven starts the launcher gets a SIGTERM instead. After each
fault no process of the run may survive. The same command is started again until the run has ended.
Then its order digest, weights, averages and optimizer state are compared, bit for bit, with those
of an undisturbed run. Linux only. The last line is JSON; --page writes benchmarks/results/chaos.md.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import torch

from benchmarks.chaos.page import page, summary
from benchmarks.chaos.plan import Fault, Outcome, epochs_for, plan
from benchmarks.chaos.run import Run
from benchmarks.measure import flags, last_checkpoint, parser, publish, run_module
from quickdraw_dist.data.shards import manifest

GLOBAL_BATCH = 96
SAVE_EVERY_STEPS = 3
PAGE = "chaos.md"


def main() -> None:
    """Compare two runs, one of them with faults; exit with 1 when they differ."""
    arguments = parser("chaos", __doc__, PAGE)
    arguments.add_argument("--kills", type=int, default=100, help="SIGKILLs [100]")
    arguments.add_argument("--seed", type=int, default=1, help="of the faults [1]")
    options = arguments.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    faults = plan(options.seed, options.kills)
    steps = _shard(options.folder / "shards")
    epochs = epochs_for(faults, steps)
    about = f"Seed {options.seed}: two ranks, {epochs} epochs of {steps} steps, "
    about += f"a checkpoint every {SAVE_EVERY_STEPS}"
    print(about, flush=True)
    started = time.monotonic()
    with Run(_command(options.folder, "undisturbed", epochs)) as undisturbed:
        start_up_seconds = undisturbed.wait_for_step(1)
        undisturbed.finish()
    reference = time.monotonic() - started
    print(
        f"undisturbed: {reference:.0f} s, the first step after {start_up_seconds:.1f} s", flush=True
    )
    started = time.monotonic()
    command = _command(options.folder, "disturbed", epochs)
    outcomes = _inject_all(command, faults, start_up_seconds)
    with Run(command) as last:
        last.finish()
    seconds = time.monotonic() - started
    expected, found = (last_checkpoint(options.folder / n) for n in ("undisturbed", "disturbed"))
    metrics = {
        "kills": sum(outcome.target != "TERM" for outcome in outcomes),
        "terms": sum(outcome.target == "TERM" for outcome in outcomes),
        "digest_equal": expected.meta["order_digest"] == found.meta["order_digest"],
        "weights_equal": expected.meta["step"] == found.meta["step"] == epochs * steps
        and same(
            [expected.weights, expected.average, expected.state],
            [found.weights, found.average, found.state],
        ),
        "survivors": sum(outcome.survivors for outcome in outcomes),
        "unexpected_exit_codes": sum(not outcome.expected for outcome in outcomes),
        "restarts": found.meta["restarts"],
        "seconds": round(seconds),
        "seconds_untouched": round(reference),
    }
    text = page(about, outcomes, last.resumed, metrics)
    publish(options, PAGE, text, metrics, shown=summary(outcomes, last.resumed))
    passed = metrics["digest_equal"] and metrics["weights_equal"] and not metrics["survivors"]
    sys.exit(0 if passed and metrics["kills"] == options.kills else 1)


def _inject_all(command: list[str], faults: list[Fault], start_up_seconds: float) -> list[Outcome]:
    """Start the command once per fault and end each start with its fault."""
    outcomes, began = list[Outcome](), time.monotonic()
    for fault in faults:
        with Run(command) as run:
            outcome = run.inject(fault, start_up_seconds, time.monotonic() - began)
        outcomes.append(outcome)
        print(f"{len(outcomes):3}  {outcome}", flush=True)
        if outcome.survivors:
            sys.exit("error: processes of the run survived; see above")
    return outcomes


def _shard(dest: Path) -> int:
    """Make a small synthetic dataset and return its steps per epoch."""
    source = ["--source", "synthetic:?classes=6&per_class=300&seed=3", "--processes", "1"]
    sizes = ["--shard.drawings_per_shard", "400", "--shard.block", "64"]
    run_module("jobs.shard", *source, "--dest", str(dest), *sizes, capture=True)
    return manifest.read(str(dest)).drawings("train") // GLOBAL_BATCH


def _command(folder: Path, name: str, epochs: int) -> list[str]:
    """The command of every start: two ranks, gradient accumulation, frequent checkpoints."""
    settings = {
        "data": folder / "shards", "output": folder / name,
        "train.epochs": epochs, "train.global_batch": GLOBAL_BATCH, "train.micro_batch": 20,
        "train.deterministic": True, "train.device": "cpu", "train.log_every": 1,
        "model.width": 4, "augment.affine": True,
        "checkpoint.every_drawings": SAVE_EVERY_STEPS * GLOBAL_BATCH,
        "optimizer.ema_half_life_drawings": 1_000, "metrics.port": 0, "metrics.report": False,
    }  # fmt: skip
    launcher = [sys.executable, "-m", "quickdraw_dist.launch", "--standalone"]
    return [*launcher, "--nproc_per_node=2", "-m", "quickdraw_dist.train", *flags(settings)]


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
