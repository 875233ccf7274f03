"""Saving a run: what goes into a checkpoint, and what happens when it cannot be written."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from quickdraw_dist import checkpoint, distributed, telemetry
from quickdraw_dist.errors import TrainingError
from quickdraw_dist.storage import StorageError

if TYPE_CHECKING:
    from quickdraw_dist.trainer import Trainer


class Saver:
    """Writes a run's checkpoints; every rank has one and calls it at the same steps."""

    def __init__(self, trainer: Trainer) -> None:
        """Nothing has been delivered yet."""
        self._trainer = trainer
        self._order_digest = 0  # of all drawings delivered up to the last save, modulo 2^64
        self._new_digest = 0  # of this rank's since then

    def resume(self, meta: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._order_digest = int(meta["order_digest"], 16)

    def delivered(self, digest: int) -> None:
        """Count a batch's drawings into the order digest."""
        self._new_digest = (self._new_digest + digest) % 2**64

    def save_for_good(self) -> None:
        """The last checkpoint of this process: without it, its work since the one before is lost.

        Raises:
            TrainingError: it could not be written.
        """
        if not self.save():
            raise TrainingError(
                f"--output {self._trainer.settings.output}: the last checkpoint could not be "
                "written; the one before stands. Make room and start again: it goes on from there"
            )

    def save(self) -> bool:
        """Write a checkpoint; a failure is reported and counted, and False on every rank."""
        t = self._trainer
        t.look()  # a resumed run cannot look at the steps before it
        with t.goodput.during("checkpoint"):
            # int64 addition wraps, which is addition modulo 2^64.
            signed = self._new_digest - (self._new_digest >> 63 << 64)
            delivered = torch.tensor([signed], device=t.world.device)
            total = int(distributed.sum_over_ranks(delivered)) + self._order_digest
            self._order_digest, self._new_digest = total % 2**64, 0
            written = self._write() if t.world.is_first else None
            return bool(distributed.broadcast_object(written))

    def _write(self) -> bool:
        t = self._trainer
        average, started, keep = t.learner.average, time.monotonic(), t.settings.checkpoint
        try:
            checkpoint.save(
                t.settings.output,
                t.total_steps,
                t.learner.model.state_dict(),
                average.state if average is not None else {},
                t.learner.state(),
                self._meta(),
            )
            checkpoint.prune(t.settings.output, t.total_steps, keep.keep_last, keep.keep_best)
            if t.run_folder is not None:
                t.run_folder.flush()
        except (OSError, StorageError) as error:
            telemetry.CHECKPOINT_FAILURES.inc()
            t.log.say(f"checkpoint FAILED at step {t.total_steps}: {error}")
            return False
        telemetry.CHECKPOINTS.inc()
        telemetry.CHECKPOINT_SECONDS.inc(time.monotonic() - started)
        return True

    def _meta(self) -> dict[str, Any]:
        t = self._trainer
        return {
            "epoch": t.epoch,
            "step_in_epoch": t.step,
            "drawings": t.drawings,
            "lanes": t.feed.lanes,
            "epoch_drawings": t.feed.drawings,
            "order_digest": f"{self._order_digest:016x}",
            "dataset_digest": t.dataset.digest,
            "classes": list(t.dataset.classes),
            "normalisation": {"mean": t.dataset.pixel_mean, "std": t.dataset.pixel_std},
            "raster": checkpoint.RASTER,
            "config": t.settings.model_dump(mode="json"),
            "validation": t.last_validation,
            "goodput": t.goodput.state(),
            "restarts": t.log.restarts,
            "skipped_steps": t.faults.count,
            "versions": checkpoint.versions(),
        }
