"""Run a case of the smoke step, and check what it leaves behind."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from benchmarks.gpu.process import run_limited, started, tail
from benchmarks.gpu.smoke.cases import Case, Kind
from benchmarks.measure import Metrics, flags, last_checkpoint, train_records
from quickdraw_dist.distributed.exits import SAVED
from quickdraw_dist.run.checkpoint.files import Checkpoint

STEPS = 20
"""Steps of an epoch."""

PASSED, FAILED, NO_TIME = "passed", "failed", "no time"

_EPOCHS_TO_STOP = 20
"""Epochs of a run that is stopped: enough for the signal to come before its end."""

_TRAIN = "quickdraw_dist.train"
_STARTS: dict[Kind, list[str]] = {
    "joined": ["benchmarks.gpu.smoke.one_rank"],
    "launched": ["quickdraw_dist.launch", "--standalone", "--nproc_per_node=1", "-m", _TRAIN],
}


@dataclass(frozen=True)
class Bench:
    """Where and how the cases run."""

    folder: Path
    batch: int
    width: int
    deadline: float  # of time.monotonic()
    compiler_threads: int  # per process

    def shards(self, content: str) -> Path:
        """The dataset of all cases with this content."""
        return self.folder / content

    def command(self, case: Case, run: str, **more: object) -> list[str]:
        """The command line of a case's training into the folder `run`."""
        settings = {
            "data": self.shards(case.content), "output": self.folder / run, "train.epochs": 1,
            "train.global_batch": self.batch, "train.log_every": 1, "model.width": self.width,
            "metrics.port": 0, "metrics.report": False, "evaluation.batch": self.batch,
        }  # fmt: skip
        start = _STARTS.get(case.kind, [_TRAIN])
        return [sys.executable, "-m", *start, *flags(settings | case.settings | more)]

    def run(self, command: list[str], log: Path) -> None:
        """Run a command to its end.

        Raises:
            CaseError: it failed, or was killed at the deadline.
        """
        left = self.deadline - time.monotonic()
        if problem := run_limited(command, log, left, self.variables).problem:
            raise CaseError(problem)

    @property
    def variables(self) -> dict[str, str]:
        """Environment: few compiler threads per process, because several compile at once."""
        return {"TORCHINDUCTOR_COMPILE_THREADS": str(self.compiler_threads)}


class CaseError(Exception):
    """A case did not do what it should."""


def run_case(case: Case, bench: Bench) -> Metrics:
    """Run a case and return `status`, `reason`, `seconds`, the `tail` of its log where it did not
    pass, and what it measured."""
    name = "".join(letter if letter.isalnum() else "-" for letter in case.name)
    log, began = bench.folder / "logs" / f"{name}.log", time.monotonic()
    if began >= bench.deadline:
        return {"status": NO_TIME, "reason": "not started", "seconds": 0.0, "tail": ""}
    check: Callable[..., Metrics] = _CHECKS.get(case.kind, _train)
    found, status, reason = Metrics(), PASSED, ""
    try:
        found = check(case, bench, name, log)
    except CaseError as error:
        status = NO_TIME if time.monotonic() >= bench.deadline else FAILED
        reason = str(error)
    end = "" if status == PASSED else tail(log)
    seconds = round(time.monotonic() - began, 1)
    return {"status": status, "reason": reason, "seconds": seconds, "tail": end} | found


def _train(case: Case, bench: Bench, name: str, log: Path) -> Metrics:
    """Train for an epoch; every step must be logged, and the last loss be a number."""
    bench.run(bench.command(case, name), log)
    losses = [record["loss"] for record in train_records(bench.folder / name)]
    if len(losses) < STEPS:
        raise CaseError(f"{len(losses)} steps were logged, not {STEPS}")
    # fp16 skips its first steps, while the scale of its loss is found: their loss is null.
    if losses[-1] is None or not isfinite(losses[-1]):
        raise CaseError(f"the last loss is {losses[-1]}")
    return {"steps": len(losses), "loss": losses[-1]}


def _evaluate(case: Case, bench: Bench, name: str, log: Path) -> Metrics:
    """Train, then evaluate the checkpoint on the test split, with the report page."""
    found = _train(case, bench, name, log)
    run = bench.folder / name
    given = ["--checkpoint", str(run), "--data", str(bench.shards(case.content))]
    bench.run([sys.executable, "-m", "jobs.evaluate", *given], log)
    if not (run / "report-test" / "index.html").exists():
        raise CaseError("jobs.evaluate wrote no page")
    return found


def _resume(case: Case, bench: Bench, name: str, log: Path) -> Metrics:
    """Stop a run by TERM after its first steps, resume it, and compare it, bit for bit, with one
    that was never stopped."""
    more = {"train.epochs": _EPOCHS_TO_STOP, "train.deterministic": True}
    whole, halves = bench.folder / f"{name}-whole", bench.folder / f"{name}-halves"
    bench.run(bench.command(case, whole.name, **more), log)
    command = bench.command(case, halves.name, **more)
    _stop(command, halves, bench, log)
    stopped_at = last_checkpoint(halves).meta["step"]
    bench.run(command, log)
    expected, found = last_checkpoint(whole), last_checkpoint(halves)
    steps = found.meta["step"]
    if not 0 < stopped_at < steps:
        raise CaseError(f"stopped at step {stopped_at} of {steps}: nothing was left to resume")
    if expected.meta["order_digest"] != found.meta["order_digest"]:
        raise CaseError("the drawings are not those of a run without a stop")
    if difference := largest_difference(expected, found):
        raise CaseError(f"stopped at step {stopped_at}: a weight differs by {difference:.3g}")
    return {"stopped_at_step": stopped_at, "steps": steps}


def _stop(command: list[str], run: Path, bench: Bench, log: Path) -> None:
    """Start a run, and end it by TERM as soon as it has trained."""
    metrics = run / "metrics.jsonl"
    with started(command, log, bench.variables) as process:
        while not (metrics.exists() and '"train"' in metrics.read_text(encoding="utf-8")):
            if process.poll() is not None or time.monotonic() >= bench.deadline:
                raise CaseError("it has logged no step")
            time.sleep(0.01)
        process.terminate()
        try:
            code = process.wait(max(0, bench.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise CaseError("it did not end after TERM") from None
    if code != SAVED:
        raise CaseError(f"exit code {code} after TERM, not {SAVED}")


_CHECKS: dict[Kind, Callable[..., Metrics]] = {"evaluated": _evaluate, "resumed": _resume}


def largest_difference(one: Checkpoint, other: Checkpoint) -> float:
    """Largest absolute difference of a weight or of its average."""
    largest = 0.0
    for mine, yours in ((one.weights, other.weights), (one.average, other.average)):
        for name, value in mine.items():
            largest = max(largest, float((value.double() - yours[name].double()).abs().max()))
    return largest
