"""Steps that were skipped because the loss or the gradient was not a number: who, what, how often.

The learner skips such a step by itself, on the device. Here the host finds out, a little later:
it says so, files the identities of the step's drawings, and ends a run that does nothing else.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict, deque
from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import StorageError, TrainingError
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.base.telemetry import metrics as telemetry
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.distributed import ranks as distributed
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.training.tally import Figures

_SHOWN = 3
"""Drawings that the line of a skipped step names; its file has all."""

FOLDER = "skipped"
"""Of a run: a file for every skipped step."""


def find_faults(figures: Figures, loss_scale: float | None) -> list[int]:
    """Which of the steps were skipped for a fault; pure, and the same on every rank.

    With a `loss_scale` (fp16) a gradient that overflows while the loss is a number is how the
    scaler finds its scale, and no fault, unless the scale fell below 1 and nothing is left to find.
    """
    searching = loss_scale is not None and loss_scale >= 1
    return [at for at in figures.skipped() if not (searching and isfinite(figures.losses[at]))]


def longest_row(faults: Sequence[int], steps: int, before: int) -> tuple[int, int]:
    """Faults in a row, when `before` ended the steps before these: (the longest, at the end)."""
    longest = current = before
    bad = set(faults)
    for at in range(steps):
        current = current + 1 if at in bad else 0
        longest = max(longest, current)
    return longest, current


class FaultLog:
    """One rank's part in finding faults. Holds the identities of the steps since the last look."""

    def __init__(self, settings: Settings, world: World, classes: Sequence[str]) -> None:
        """No faults so far."""
        self._settings, self._world, self._classes = settings, world, classes
        self._drawings: deque[tuple[torch.Tensor, NDArray[np.uint32]]] = deque()
        self._row = 0
        self.count = 0  # of the run, carried on by the checkpoint

    def resume(self, count: int) -> None:
        """Go on from a checkpoint's count."""
        self.count = count
        telemetry.SKIPPED_STEPS.inc(count)

    def remember(self, batch: Batch) -> None:
        """Keep a step's identities until the next look; the batch's own memory is used again."""
        self._drawings.append((batch.labels.clone(), batch.rows.copy()))

    def look(self, figures: Figures, next_step: int, loss_scale: float | None) -> list[str]:
        """Judge the steps since the last look, which end before `next_step`; all ranks together.

        Returns a line for every one that was skipped for a fault.

        Raises:
            TrainingError: `train.max_skipped` in a row.
        """
        faults = find_faults(figures, loss_scale)
        first = next_step - len(figures.norms)
        lines = [self._file(first + at, figures, at) for at in faults]
        self._drawings.clear()
        self.count += len(faults)
        telemetry.SKIPPED_STEPS.inc(len(faults))
        longest, self._row = longest_row(faults, len(figures.norms), self._row)
        if longest >= self._settings.train.max_skipped:
            where = storage.join(self._settings.output, FOLDER)
            raise TrainingError(
                "\n".join(lines[-_SHOWN:]) + f"\n{longest} steps in a row were skipped, and "
                f"--train.max_skipped is {self._settings.train.max_skipped}: the loss or the "
                "gradient is not a number any more. The last checkpoint stands, the drawings are "
                f"listed in {where}. A lower --optimizer.learning_rate, or --train.precision "
                "fp32, may help"
            )
        return lines

    def _file(self, step: int, figures: Figures, at: int) -> str:
        """Write down a fault's drawings, of all ranks; returns its line."""
        labels, rows = self._drawings[at]
        pairs = list(zip(labels.tolist(), rows.tolist(), strict=True))
        loss = figures.own_losses[at]
        mine: dict[str, Any] = {"rank": self._world.rank, "loss": loss, "drawings": pairs}
        ranks = distributed.gather_objects(mine)
        blamed = [r for r in ranks if not isfinite(r["loss"])]
        why = "the gradient was not finite, the loss was"
        if blamed:
            numbers = ", ".join(str(r["rank"]) for r in blamed)
            why = f"the loss was {blamed[0]['loss']} on rank {numbers} of {self._world.size}"
        seen = [pair for r in blamed or ranks for pair in r["drawings"]]
        some = ", ".join(f"{self._classes[c]} {row}" for c, row in seen[:_SHOWN])
        if self._world.is_first:
            self._publish(step, ranks)
        return f"step {step:,} SKIPPED: {why}; of {len(seen):,} drawings there: {some} (class, row)"

    def _publish(self, step: int, ranks: Sequence[dict[str, Any]]) -> None:
        parts = []
        for part in ranks:
            rows = defaultdict(list)
            for label, row in part["drawings"]:
                rows[self._classes[label]].append(row)
            loss = part["loss"] if isfinite(part["loss"]) else str(part["loss"])
            parts.append({"rank": part["rank"], "loss_sum": loss, "rows_by_class": rows})
        text = json.dumps({"step": step, "ranks": parts})
        url = storage.join(self._settings.output, FOLDER, f"step-{step:09d}.json")
        try:
            storage.publish(url, text.encode())
        except (OSError, StorageError) as error:
            print(f"{url}: {error}; what it would have held: {text}", file=sys.stderr, flush=True)
