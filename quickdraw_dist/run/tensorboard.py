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
"""Of a run's folder."""


def check(settings: Settings) -> None:
    """Refuse what cannot work, before any work is done.

    Raises:
        RefusedError: the package is missing, or the output is no folder of this machine.
    """
    if not settings.metrics.tensorboard:
        return
    if find_spec("tensorboard") is None:
        raise RefusedError(
            "--metrics.tensorboard true: needs the package tensorboard, which is not installed: "
            "pip install 'quickdraw-dist[tensorboard]'"
        )
    if storage.is_remote(settings.output):
        raise RefusedError(
            f"--metrics.tensorboard true: writes to a local folder only, --output is "
            f"{settings.output}; metrics.jsonl has the same figures there"
        )


class EventFile:
    """Takes a run's records; of each process one file."""

    def __init__(self, run: str, step: int) -> None:
        """Go on after `step`: what an earlier process's file has of later steps is not shown."""
        from torch.utils.tensorboard import SummaryWriter  # needs the extra

        folder = str(Path(run, FOLDER))
        self._writer = SummaryWriter(folder, purge_step=step + 1)

    def add(self, record: Mapping[str, Any]) -> None:
        """Every real figure of a record, as train/loss or validation/top1."""
        for name, value in record.items():
            if isinstance(value, float) and name not in ("time", "epoch"):
                self._writer.add_scalar(
                    f"{record['kind']}/{name}", value, record["step"], record["time"]
                )
        if record["kind"] == "validation":
            self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
