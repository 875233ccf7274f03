"""Run a step in processes of its own, and record how it ended."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu import record
from benchmarks.gpu.commands import command_of
from benchmarks.gpu.plan import Step
from benchmarks.gpu.process import run_limited, tail
from benchmarks.gpu.record import Record

_MARGIN_SECONDS = 10.0
"""From the end that a step plans for to the limit at which it is killed."""


@dataclass(frozen=True)
class Benchmark:
    """Where the steps run and are recorded."""

    out: Path
    folder: Path
    cpu: bool

    def is_due(self, step: str, only: Collection[str]) -> bool:
        """Whether to run a step: one that `only` names; where it is empty, one not finished."""
        found = record.read(self.out, step)
        finished = found is not None and found.status in record.FINISHED
        return step in only if only else not finished

    def skip(self, step: Step) -> None:
        """Record that a step did not fit, unless it has results of an earlier time."""
        reason = f"needs {step.least:.0f} s, fewer left"
        if record.read(self.out, step.name) is None:
            record.write(self.out, Record(step.name, record.SKIPPED, reason, self.cpu))
        print(f"{step.name}: skipped: {reason}", flush=True)

    def run(self, step: str, limit: float) -> None:
        """Run a step for at most `limit` seconds, and record how it ended."""
        log, results = record.log_of(self.out, step), self.folder / f"{step}.json"
        shutil.rmtree(self.folder, ignore_errors=True)
        log.unlink(missing_ok=True)
        planned = max(1.0, limit - _MARGIN_SECONDS)
        found = Record(
            step,
            record.STOPPED,
            "the benchmark itself was stopped",
            self.cpu,
            command_of(step, self.folder, results, planned, self.cpu),
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
            limit_seconds=round(limit, 1),
        )
        record.write(self.out, found)
        began = time.monotonic()
        print(f"{step}: at most {limit:.0f} s", flush=True)
        try:
            outcome = run_limited(found.command, log, limit, self._variables())
            status = {0: record.PASSED, None: record.TIMED_OUT}.get(
                outcome.exit_code, record.FAILED
            )
            found = replace(found, status=status, reason=outcome.problem or "")
        finally:
            measured = record.read_results(results)
            reason = measured.get("problem") or found.reason
            seconds = round(time.monotonic() - began, 1)
            found = replace(found, seconds=seconds, reason=reason, results=measured)
            record.write(self.out, found)
            shutil.rmtree(self.folder, ignore_errors=True)
        print(f"{step}: {found.status} after {seconds:.0f} s. {reason}", flush=True)
        if found.status != record.PASSED:
            print(tail(log), flush=True)

    def _variables(self) -> dict[str, str]:
        """Environment of a step. In miniature there is no GPU, and a process has one thread: two on
        two busy cores wait for each other."""
        if not self.cpu:
            return {}
        alone = {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(os.cpu_count())}
        return {"CUDA_VISIBLE_DEVICES": "", **alone}
