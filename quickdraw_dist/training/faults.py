"""Report steps that were skipped because the loss or the gradient was NaN or inf.

The learner skips such a step on the device. Once per log interval the host reads which steps were
skipped, logs them, writes the identities of their drawings to files, and ends a run that skips too
many in a row.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import StorageError, TrainingError
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.distributed.ranks import World, gather_objects
from quickdraw_dist.training.tally import StepMetrics

_SHOWN = 3
"""Drawings that the log line of a skipped step names; its file has all."""

FOLDER = "skipped"
"""Folder within a run's output with a file per skipped step."""


def find_faults(steps: StepMetrics, loss_scale: float | None) -> list[int]:
    """Return the indices of the steps that were skipped for a fault, the same on every rank.

    With a `loss_scale` (fp16; else None), an overflowing gradient under a finite loss is no fault:
    the scaler lowers its scale. It is one when the scale is already below 1.
    """
    searching = loss_scale is not None and loss_scale >= 1
    return [at for at in steps.skipped() if not (searching and isfinite(steps.losses[at]))]


def longest_streak(faults: Sequence[int], steps: int, before: int) -> tuple[int, int]:
    """Return the most faults in a row within `steps` steps, and those at their end.

    `faults` are indices of steps; `before` faults in a row precede the first step.
    """
    longest = current = before
    bad = set(faults)
    for at in range(steps):
        current = current + 1 if at in bad else 0
        longest = max(longest, current)
    return longest, current


class FaultLog:
    """Finds faults together with the other ranks; holds the drawings of steps not yet checked.

    Attributes:
        count: faults of the whole run; checkpoints store it.
    """

    def __init__(self, settings: Settings, world: World, classes: Sequence[str]) -> None:
        self._settings, self._world, self._classes = settings, world, classes
        self._drawings: list[tuple[torch.Tensor, NDArray[np.uint32]]] = []
        self._streak = 0
        self.count = 0

    def resume(self, count: int) -> None:
        """Continue from a checkpoint's count."""
        self.count = count
        metrics.SKIPPED_STEPS.inc(count)

    def remember(self, batch: Batch) -> None:
        """Copy the identities of a step's drawings for `check`; loaders reuse a batch's memory."""
        self._drawings.append((batch.labels.clone(), batch.rows.copy()))

    def check(self, steps: StepMetrics, next_step: int, loss_scale: float | None) -> list[str]:
        """Return a log line for every step that was skipped for a fault, after writing its file.

        A collective: all ranks call it with their metrics of the steps since the last call, which
        end before step `next_step` of the run. `loss_scale` is fp16's, else None.

        Raises:
            TrainingError: `train.max_skipped` or more faults in a row.
        """
        faults = find_faults(steps, loss_scale)
        first = next_step - len(steps.norms)
        lines = [self._file(first + at, steps, at) for at in faults]
        self._drawings.clear()
        self.count += len(faults)
        metrics.SKIPPED_STEPS.inc(len(faults))
        longest, self._streak = longest_streak(faults, len(steps.norms), self._streak)
        if longest >= self._settings.train.max_skipped:
            folder = storage.join(self._settings.output, FOLDER)
            raise TrainingError(
                "\n".join(lines[-_SHOWN:]) + f"\n{longest} steps in a row were skipped because "
                "the loss or the gradient is NaN or inf, and --train.max_skipped is "
                f"{self._settings.train.max_skipped}. The last checkpoint is intact; the drawings "
                f"are listed in {folder}. Try a lower --optimizer.learning_rate or "
                "--train.precision fp32"
            )
        return lines

    def _file(self, step: int, steps: StepMetrics, at: int) -> str:
        """Write the file of a fault with the drawings of all ranks; return its log line."""
        labels, rows = self._drawings[at]
        pairs = list(zip(labels.tolist(), rows.tolist(), strict=True))
        loss = steps.own_losses[at]
        own: dict[str, Any] = {"rank": self._world.rank, "loss": loss, "drawings": pairs}
        ranks = gather_objects(own)
        if self._world.is_first:
            self._publish(step, ranks)
        blamed = [r for r in ranks if not isfinite(r["loss"])]
        cause = "the gradient was NaN or inf, the loss finite"
        if blamed:
            numbers = ", ".join(str(r["rank"]) for r in blamed)
            cause = f"the loss was {blamed[0]['loss']} on rank {numbers} of {self._world.size}"
        drawings = [pair for r in blamed or ranks for pair in r["drawings"]]
        some = ", ".join(f"{self._classes[label]} {row}" for label, row in drawings[:_SHOWN])
        more = f" and {len(drawings) - _SHOWN:,} more" if len(drawings) > _SHOWN else ""
        return f"step {step:,} SKIPPED: {cause}; drawings there (class, row): {some}{more}"

    def _publish(self, step: int, ranks: Sequence[dict[str, Any]]) -> None:
        shares = []
        for share in ranks:
            rows = defaultdict(list)
            for label, row in share["drawings"]:
                rows[self._classes[label]].append(row)
            loss = share["loss"] if isfinite(share["loss"]) else str(share["loss"])
            shares.append({"rank": share["rank"], "loss_sum": loss, "rows_by_class": rows})
        text = json.dumps({"step": step, "ranks": shares})
        folder = storage.join(self._settings.output, FOLDER)
        url = storage.join(folder, f"step-{step:09d}.json")
        try:
            again = 1
            while storage.exists(url):  # of an earlier process that took this step: stays
                again += 1
                url = storage.join(folder, f"step-{step:09d}-{again}.json")
            storage.publish(url, text.encode())
        except (OSError, StorageError) as error:
            print(f"{url}: {error}. Its contents: {text}", file=sys.stderr, flush=True)
