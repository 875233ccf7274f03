"""The loop: stream a global batch, step, log, evaluate, save; stop and resume anywhere."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator
from typing import Any

import torch

from quickdraw_dist import checkpoint, distributed, models, telemetry
from quickdraw_dist.config import Settings
from quickdraw_dist.distributed import SAVED_EXIT_CODE, World
from quickdraw_dist.errors import RefusedError, TrainingError
from quickdraw_dist.evaluation import evaluate
from quickdraw_dist.learner import Learner
from quickdraw_dist.progress import Interval, ProgressLog
from quickdraw_dist.run_folder import RunFolder
from quickdraw_dist.storage import StorageError
from quickdraw_dist.stream.device import DeviceBatch, on_device
from quickdraw_dist.stream.feed import Dataset, open_feed, refuse_misfit


def refuse_impossible(settings: Settings, dataset: Dataset, world_size: int) -> None:
    """Check what needs no other rank and no data, before any rank waits for another.

    Raises:
        RefusedError: naming the setting, its value and what would be right.
    """
    models.check(settings.model)
    refuse_misfit(settings, dataset, world_size)


class Trainer:
    """One rank of one run. `epoch` and `step` (in the epoch) are the whole position."""

    def __init__(self, settings: Settings, world: World, dataset: Dataset) -> None:
        """Build everything; no state is loaded yet, and foreign data only read to measure it."""
        self.settings, self.world = settings, world
        self.goodput = telemetry.Goodput()
        self.run_folder: RunFolder | None = None  # rank 0's
        distributed.from_first_rank(self._take_run_folder)
        self.stop_signal = distributed.StopSignal()
        self.setting_changes: list[str] = []
        self.resumed = self._find_checkpoint(dataset)
        saved = self.resumed.meta if self.resumed is not None else None
        self.feed = open_feed(settings, dataset, world, saved)
        self.dataset = self.feed.dataset
        self.total_drawings = settings.train.epochs * self.feed.steps * settings.train.global_batch
        self.learner = Learner(settings, world, self.dataset, self.total_drawings)
        self.epoch = self.step = self.total_steps = 0
        self.order_digest = 0  # of all drawings delivered up to the last checkpoint, modulo 2^64
        self.new_digest = 0  # of this rank's since then
        self.last_validation: dict[str, Any] | None = None
        self.log = ProgressLog(self)

    @property
    def drawings(self) -> int:
        """Drawings trained on so far, over all ranks."""
        return self.total_steps * self.settings.train.global_batch

    # -- the loop ------------------------------------------------------------------------------

    def run(self) -> int:
        """Train to the end or to a signal; returns the exit code."""
        epochs = self.settings.train.epochs
        if self.resumed is not None and self.resumed.meta["epoch"] >= epochs:
            self.log.say(f"{self.settings.output}: this run is finished ({epochs} epochs)")
            return 0
        with self.goodput.during("compile"):
            start, stop = self.feed.part
            self.learner.warm_up(stop - start)
        if self.resumed is not None:
            self._load(self.resumed)
        self.log.start()
        self.learner.model.train()
        gc.collect()
        gc.freeze()  # what is here stays: later collections need not look at it again
        for epoch in range(self.epoch, epochs):
            batches = self.feed.epoch(epoch, self.step)
            with contextlib.closing(batches):
                if not self._train_epoch(on_device(batches, self.world.device)):
                    self._save_for_good()
                    self.stop_signal.close()
                    self.log.say("stopped by a signal; saved. The same command goes on from here")
                    return SAVED_EXIT_CODE
            self.log.write()
            self.epoch, self.step = epoch + 1, 0
            self.validate()
            if self.epoch < epochs:
                self.save()
        self._save_for_good()
        self.stop_signal.close()
        self.log.finish()
        return 0

    def _train_epoch(self, batches: Iterator[DeviceBatch]) -> bool:
        """The rest of the current epoch; False when a signal ended it early."""
        every_evaluation = Interval(self.settings.evaluation.every_drawings)
        every_checkpoint = Interval(self.settings.checkpoint.every_drawings)
        while True:
            self.goodput.switch("data_wait")
            batch = next(batches, None)
            telemetry.DATA_WAIT_SECONDS.inc(self.goodput.switch("train"))
            if batch is None:
                return True
            before, started = self.drawings, time.monotonic()
            self.learner.step(batch.drawings, batch.labels, self.total_steps)
            self.new_digest = (self.new_digest + batch.host.digest) % 2**64
            self.step += 1
            self.total_steps += 1
            telemetry.STEP_SECONDS.observe(time.monotonic() - started)
            if self.total_steps % self.settings.train.log_every == 0:
                self.log.write()
            last = self.step == self.feed.steps  # evaluates and saves after the epoch
            if every_evaluation.passed(before, self.drawings) and not last:
                self.validate()
            if self.stop_signal.agreed() and not last:
                return False
            if every_checkpoint.passed(before, self.drawings) and not last:
                self.save()

    def validate(self) -> None:
        """Measure the averaged weights with rank 0's statistics on the validation split, if any."""
        batches = self.feed.validation()
        if batches is None:
            return
        with self.goodput.during("evaluation"):
            world, settings, dataset = self.world, self.settings, self.dataset
            model = models.build(settings.model, len(dataset.classes)).to(world.device)
            model.load_state_dict(self.learner.averaged_weights())
            distributed.broadcast_tensors(model.state_dict().values())
            result = evaluate(
                model,
                batches,
                split="val",
                classes=dataset.classes,
                mean=dataset.pixel_mean,
                std=dataset.pixel_std,
                world=world,
                autocast=self.learner.autocast,
            )
            self.last_validation = result.figures() | {"step": self.total_steps}
            self.log.evaluation(result)

    # -- state ---------------------------------------------------------------------------------

    def _take_run_folder(self) -> None:
        self.run_folder = RunFolder(self.settings.output)

    def _choose_checkpoint(self) -> str | None:
        output, resume = self.settings.output, self.settings.train.resume
        there = checkpoint.steps(output)
        if resume == "never" and there:
            raise RefusedError(
                f"--output {output}: holds a run, and --train.resume is never; another "
                "--output, or --train.resume auto, is right"
            )
        found = checkpoint.newest(output)
        if found is None and there:
            raise RefusedError(
                f"--output {output}: holds a run, but no checkpoint that verifies; another "
                "--output, or emptying this one, is right"
            )
        if found is None and resume == "must":
            raise RefusedError(
                f"--output {output}: no run there to resume; its folder, or --train.resume auto, "
                "is right"
            )
        return found.url if found is not None else None

    def _find_checkpoint(self, dataset: Dataset) -> checkpoint.Checkpoint | None:
        """The checkpoint to resume: chosen by rank 0, read and checked by all."""
        url = distributed.from_first_rank(self._choose_checkpoint)
        if url is None:
            return None
        loaded = checkpoint.load(url)
        self.setting_changes = checkpoint.refuse_changes(loaded, self.settings, dataset)
        return loaded

    def _load(self, saved: checkpoint.Checkpoint) -> None:
        meta = saved.meta
        self.learner.load(saved)
        self.epoch, self.step = meta["epoch"], meta["step_in_epoch"]
        self.total_steps, self.order_digest = meta["step"], int(meta["order_digest"], 16)
        self.last_validation = meta["validation"]
        self.log.resume(meta)

    def _save_for_good(self) -> None:
        """The last checkpoint of this process: without it, its work since the one before is lost.

        Raises:
            TrainingError: it could not be written.
        """
        if not self.save():
            raise TrainingError(
                f"--output {self.settings.output}: the last checkpoint could not be written; the "
                "one before stands. Make room and start again: it goes on from there"
            )

    def save(self) -> bool:
        """Write a checkpoint; a failure is reported and counted, and False on every rank."""
        self.log.write()  # looks at the loss: what is not a number is never saved
        with self.goodput.during("checkpoint"):
            # int64 addition wraps, which is addition modulo 2^64.
            signed = self.new_digest - (self.new_digest >> 63 << 64)
            delivered = torch.tensor([signed], device=self.world.device)
            total = int(distributed.sum_over_ranks(delivered)) + self.order_digest
            self.order_digest, self.new_digest = total % 2**64, 0
            written = self._write() if self.world.is_first else None
            return bool(distributed.broadcast_object(written))

    def _write(self) -> bool:
        settings, dataset, learner = self.settings, self.dataset, self.learner
        meta = {
            "epoch": self.epoch,
            "step_in_epoch": self.step,
            "drawings": self.drawings,
            "lanes": self.feed.lanes,
            "epoch_drawings": self.feed.drawings,
            "order_digest": f"{self.order_digest:016x}",
            "dataset_digest": dataset.digest,
            "classes": list(dataset.classes),
            "normalisation": {"mean": dataset.pixel_mean, "std": dataset.pixel_std},
            "raster": checkpoint.RASTER,
            "config": settings.model_dump(mode="json"),
            "validation": self.last_validation,
            "goodput_seconds": self.goodput.seconds,
            "restarts": self.log.restarts,
            "versions": checkpoint.versions(),
        }
        weights, average = learner.model.state_dict(), learner.average
        started, keep = time.monotonic(), settings.checkpoint
        try:
            checkpoint.save(
                settings.output,
                self.total_steps,
                weights,
                average.state if average is not None else {},
                learner.state(),
                meta,
            )
            checkpoint.prune(settings.output, self.total_steps, keep.keep_last, keep.keep_best)
            if self.run_folder is not None:
                self.run_folder.flush()
        except (OSError, StorageError) as error:
            telemetry.CHECKPOINT_FAILURES.inc()
            self.log.say(f"checkpoint FAILED at step {self.total_steps}: {error}")
            return False
        telemetry.CHECKPOINTS.inc()
        telemetry.CHECKPOINT_SECONDS.inc(time.monotonic() - started)
        return True
