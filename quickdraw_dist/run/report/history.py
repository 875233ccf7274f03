"""A run's history, as its metrics.jsonl has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.run.folder import LOG, read_log


@dataclass(frozen=True)
class History:
    """A run's records: `start` per process, `train` per log interval, `validation` and `end`."""

    records: tuple[Mapping[str, Any], ...]

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """Return the records of a kind; validations of no drawings measured nothing."""
        of_kind = [record for record in self.records if record["kind"] == kind]
        return [r for r in of_kind if kind != "validation" or r.get("drawings", 1)]

    def curve(self, kind: str, metric: str) -> tuple[list[float], list[float]]:
        """Return the epochs and values of a metric; null values (all steps skipped) are dropped."""
        points = [(r["epoch"], r[metric]) for r in self.of(kind) if r.get(metric) is not None]
        return [epoch for epoch, _ in points], [value for _, value in points]

    @property
    def restarts(self) -> list[float]:
        """Epochs at which a process resumed the run."""
        return [record["epoch"] for record in self.of("start")[1:]]

    @property
    def finished(self) -> bool:
        """Whether the last process completed the run."""
        return bool(self.records) and self.records[-1]["kind"] == "end"

    @property
    def goodput_seconds(self) -> dict[str, float]:
        """Wall time by cause, up to the last record; empty before the first log interval."""
        known = [r["goodput_seconds"] for r in self.records if "goodput_seconds" in r]
        return dict(known[-1]) if known else {}

    @property
    def last(self) -> Mapping[str, Any]:
        """The last record."""
        return self.records[-1]

    @property
    def drawings(self) -> int:
        """Drawings trained on so far. (A validation's record has those of its split.)"""
        return max(int(r["drawings"]) for r in self.records if r["kind"] != "validation")


def read(run: str) -> History:
    """Read the history of a run, a folder or gs://, which may still be running.

    Raises:
        RefusedError: no run there.
        StorageError: the store failed.
    """
    records = [record for _, record in read_log(run)]
    if not records:
        raise RefusedError(run, None, f"no {LOG} with a record there", "Give a run's folder")
    return History(tuple(records))
