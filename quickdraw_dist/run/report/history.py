"""What metrics.jsonl tells of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.run.folder import LOG, read_log


@dataclass(frozen=True)
class History:
    """A run's records: `start` of each process, `train` a look, `validation`, and `end`."""

    records: tuple[Mapping[str, Any], ...]

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """The records of a kind."""
        return [record for record in self.records if record["kind"] == kind]

    def curve(self, kind: str, figure: str) -> tuple[list[float], list[float]]:
        """Epochs and values of a figure, where it has one: no loss where all steps were skipped."""
        points = [(r["epoch"], r[figure]) for r in self.of(kind) if r.get(figure) is not None]
        return [epoch for epoch, _ in points], [value for _, value in points]

    @property
    def restarts(self) -> list[float]:
        """Epochs at which a process went on with the run."""
        return [record["epoch"] for record in self.of("start")[1:]]

    @property
    def finished(self) -> bool:
        """Whether the last process came to the end."""
        return bool(self.records) and self.records[-1]["kind"] == "end"

    @property
    def goodput_seconds(self) -> dict[str, float]:
        """Wall time up to the last look, by cause; empty before the first one."""
        known = [r["goodput_seconds"] for r in self.records if "goodput_seconds" in r]
        return dict(known[-1]) if known else {}

    @property
    def last(self) -> Mapping[str, Any]:
        """The last record."""
        return self.records[-1]


def read(run: str) -> History:
    """The history of a run, a folder or gs://, that may still go on.

    Raises:
        RefusedError: no run there.
        StorageError: the store failed.
    """
    records = [record for _, record in read_log(run)]
    if not records:
        raise RefusedError(f"{run}: no {LOG} with a record there; a run's folder is right")
    return History(tuple(records))
