"""What is recorded of each step, in one JSON file: how it ended, and what it measured."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.gpu.plan import STEPS
from benchmarks.measure import Metrics, write_json

FILE = "results.json"

PASSED, FAILED, TIMED_OUT, SKIPPED, STOPPED = "passed", "failed", "timed out", "skipped", "stopped"
FINISHED = (PASSED, FAILED)
"""How a step ended that need not be run again."""


@dataclass(frozen=True)
class Record:
    """What is known of a step."""

    step: str
    status: str
    reason: str = ""  # why it did not pass
    cpu: bool = False  # in miniature
    command: list[str] = field(default_factory=list)
    started: str = ""  # date and time, UTC
    seconds: float = 0.0
    limit_seconds: float | None = None  # None: as long as it takes
    results: Metrics = field(default_factory=dict)
    """What the step measured; also if it failed or was killed, as far as it got."""

    @property
    def brief(self) -> Metrics:
        """How it ended, for the summary."""
        shown = {"status": self.status, "seconds": self.seconds, "reason": self.reason}
        return {name: value for name, value in shown.items() if value != ""}


def log_of(folder: Path, step: str) -> Path:
    """Path of a step's log."""
    number = [known.name for known in STEPS].index(step) + 1
    return folder / f"{number:02}-{step}.log"


def read_all(folder: Path) -> dict[str, Record]:
    """Return what is recorded in a folder, by step, in order of worth."""
    path = folder / FILE
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return {step.name: Record(**found[step.name]) for step in STEPS if step.name in found}


def read(folder: Path, step: str) -> Record | None:
    """Return what is recorded of a step; None if nothing is."""
    return read_all(folder).get(step)


def write(folder: Path, record: Record) -> None:
    """Create or replace what is recorded of a step."""
    records = read_all(folder) | {record.step: record}
    write_json(folder / FILE, {name: asdict(one) for name, one in records.items()})


def read_results(path: Path) -> Metrics:
    """Return the results that a step has written so far."""
    if not path.exists():
        return {}
    results: Metrics = json.loads(path.read_text(encoding="utf-8"))
    return results
