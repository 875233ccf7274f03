"""Event files for TensorBoard: the curves of metrics.jsonl in a second format."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.settings import Settings

FOLDER = "tensorboard"
"""In a run's folder."""


def check(settings: Settings) -> None:
    """Check that event files can be written, if they are asked for.

    Raises:
        RefusedError: the package is missing, or the output is not a local folder.
    """
    if not settings.metrics.tensorboard:
        return
    if find_spec("tensorboard") is None:
        raise RefusedError(
            "--metrics.tensorboard",
            True,
            "the package tensorboard is not installed",
            "Run pip install 'quickdraw-dist[tensorboard]'",
        )
    if storage.is_remote(settings.output):
        raise RefusedError(
            "--metrics.tensorboard",
            True,
            f"event files need a local folder, and --output is {settings.output}",
            "Leave it out: metrics.jsonl has the same metrics there",
        )


class EventFile:
    """The event file of one process of a run."""

    def __init__(self, run: str, step: int) -> None:
        """Continue after `step`: TensorBoard hides what earlier files have of later steps."""
        from torch.utils.tensorboard import SummaryWriter  # needs the extra

        folder = str(Path(run, FOLDER))
        self._writer = SummaryWriter(folder, purge_step=step + 1)

    def add(self, record: Mapping[str, Any]) -> None:
        """Add every floating-point value of a record, as train/loss or validation/top1."""
        for name, value in record.items():
            if isinstance(value, float) and name not in ("time", "epoch"):
                self._writer.add_scalar(
                    f"{record['kind']}/{name}", value, record["step"], record["time"]
                )
        if record["kind"] == "validation":
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()
