"""The loop: stream a global batch, step, log, evaluate, save; stop and resume anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from quickdraw_dist import models
from quickdraw_dist.base import garbage
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.base.telemetry import metrics as telemetry
from quickdraw_dist.base.telemetry import phases as whereabouts
from quickdraw_dist.base.telemetry.device_timer import DeviceTimer
from quickdraw_dist.base.telemetry.metrics import Goodput
from quickdraw_dist.data.feed import Dataset, open_feed, refuse_misfit
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.data.stream.device import DeviceBatch, on_device
from quickdraw_dist.distributed import ranks as distributed
from quickdraw_dist.distributed.agreement import Agreement
from quickdraw_dist.distributed.exits import SAVED_EXIT_CODE, leave
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.distributed.signals import StopSignal
from quickdraw_dist.distributed.stragglers import Stragglers
from quickdraw_dist.evaluation.metrics import MISTAKES, evaluate
from quickdraw_dist.run import tensorboard
from quickdraw_dist.run.checkpoint import resume as resuming
from quickdraw_dist.run.checkpoint.files import Checkpoint
from quickdraw_dist.run.checkpoint.saver import Saver
from quickdraw_dist.run.folder import RunFolder
from quickdraw_dist.run.position import Interval, Position
from quickdraw_dist.run.progress import ProgressLog
from quickdraw_dist.run.report.page import report_end
from quickdraw_dist.training.faults import FaultLog
from quickdraw_dist.training.learner import Learner
from quickdraw_dist.training.profiler import StepProfiler


def refuse_impossible(settings: Settings, dataset: Dataset, world_size: int) -> None:
    """Check what needs no other rank and no data, before any rank waits for another.

    Raises:
        RefusedError: naming the setting, its value and what would be right.
    """
    models.check(settings.model)
    tensorboard.check(settings)
    refuse_misfit(settings, dataset, world_size)


class Trainer:
    """One rank of one run. `epoch` and `step` (in the epoch) are the whole position."""

    def __init__(
        self,
        settings: Settings,
        world: World,
        dataset: Dataset,
        goodput: Goodput,
        folder: RunFolder | None,
        stop: StopSignal | None = None,
    ) -> None:
        """Build everything; no state is loaded yet, and external data only read to measure it.

        `folder` is rank 0's; the others have none. Without `stop`, signals are the caller's.
        """
        self.settings, self.world, self.goodput, self.folder = settings, world, goodput, folder
        self.step_timer = DeviceTimer(world.device, telemetry.STEP_SECONDS.observe)
        self.agreement = Agreement(
            stop or StopSignal(),
            settings.train.shutdown_seconds,
            lambda: goodput.cause,
            settings.train.patience_seconds,
        )
        self.resumed, self.setting_changes = resuming.find(settings, dataset)
        saved = self.resumed.meta if self.resumed is not None else None
        self.feed = open_feed(settings, dataset, world, saved)
        self.dataset = self.feed.dataset
        self.epoch = self.step = self.total_steps = 0
        self.learner = Learner(settings, world, self.dataset, self.position.total_drawings)
        self.last_validation: dict[str, Any] | None = None
        self.log = ProgressLog(goodput, folder, settings.metrics)
        self.faults = FaultLog(settings, world, self.dataset.classes)
        self.stragglers = Stragglers(world)
        self.profiler = StepProfiler(settings.train.profile, world, settings.output, self.log.say)
        self.saver = Saver(settings, self.feed, self.learner, self.log, goodput, folder)

    def _go_on_from(self, saved: Checkpoint) -> None:
        meta = saved.meta
        self.learner.load(saved)
        self.epoch, self.step, self.total_steps = meta["epoch"], meta["step_in_epoch"], meta["step"]
        self.last_validation = meta["validation"]
        self.faults.resume(meta.get("skipped_steps", 0))
        self.saver.resume(meta["order_digest"], self.position, self._carried)

    @property
    def position(self) -> Position:
        """How far the run is."""
        train = self.settings.train
        return Position(
            self.epoch,
            train.epochs,
            self.step,
            self.feed.steps,
            self.total_steps,
            train.global_batch,
        )

    @property
    def drawings(self) -> int:
        """Drawings trained on so far, over all ranks."""
        return self.position.drawings

    # -- the loop ------------------------------------------------------------------------------

    def run(self) -> int:
        """Train to the end or to a signal; returns the exit code."""
        epochs = self.settings.train.epochs
        if self.resumed is not None and self.resumed.meta["epoch"] >= epochs:
            self.log.say(f"{self.settings.output}: this run is finished ({epochs} epochs)")
            return 0
        whereabouts.at("compile", 0)
        with self.goodput.during("compile"):
            start, stop = self.feed.part
            self.learner.warm_up(stop - start)
        if self.resumed is not None:
            self._go_on_from(self.resumed)
        meta = self.resumed.meta if self.resumed is not None else None
        self.log.start(self.position, meta, self._introduce())
        self.learner.model.train()
        self._validate_if_due()  # a signal may have stopped the run in the midst of it
        with garbage.collected_by_hand():
            while self.epoch < epochs:
                self._train_epoch()
                self.epoch, self.step = self.epoch + 1, 0
                if self.epoch < epochs:
                    self.save(must=True)
        self.profiler.close()
        self.save_for_good()
        self.agreement.meet()
        self.log.finish(self.position)
        if self.folder is not None and self.settings.metrics.report:
            self.log.say(report_end(self.folder, self.log.validation))
        return 0

    def _introduce(self) -> dict[str, Any]:
        """Say what is about to happen; returns the facts that the log keeps of it."""
        facts = {
            "model": self.settings.model.name,
            "parameters": sum(p.numel() for p in self.learner.model.parameters()),
            "classes": len(self.dataset.classes),
            "ranks": self.world.size,
            "device": self.world.device.type,
            "precision": self.learner.precision,
        }
        shown = "{model} of {parameters:,} parameters, {classes} classes, {ranks} x {device}, "
        self.log.say((shown + "{precision}").format(**facts))
        for line in self.feed.describe(self.step):
            self.log.say(line)
        if self.resumed is not None:
            place = f"epoch {self.epoch + 1}, step {self.step:,} of {self.feed.steps:,}"
            self.log.say(f"resumed {self.resumed.url}: {place}")
            for change in self.setting_changes:
                self.log.say(f"  changed since: {change}")
        return facts

    def _train_epoch(self) -> None:
        """The rest of the current epoch, its validation included."""
        every_checkpoint = Interval(self.settings.checkpoint.every_drawings)
        if self.step == self.feed.steps:
            return
        with contextlib.closing(self.feed.epoch(self.epoch, self.step)) as batches:
            for batch in self.agreement.together(self._timed(batches)):
                before = self.drawings
                with self.step_timer:
                    self.learner.step(batch.drawings, batch.labels, self.total_steps)
                first = self.step * self.settings.train.global_batch + self.feed.part[0]
                self.saver.order_digest.add(self.epoch, first, batch.host.labels, batch.host.rows)
                self.faults.remember(batch.host)
                self.step += 1
                self.total_steps += 1
                self.log.forward(self.settings.train.global_batch)
                if self.total_steps % self.settings.train.log_every == 0:
                    self.look()
                self._validate_if_due()
                if every_checkpoint.passed(before, self.drawings) and self.step < self.feed.steps:
                    self.save()
            self._leave_if_stopped()  # before the loader is closed, which may wait for a store

    def _timed(self, batches: Iterator[Batch]) -> Iterator[DeviceBatch]:
        """Batches on the device; the time they are waited for is charged to the data."""
        there = on_device(batches, self.world.device)
        while True:
            self.profiler.step()
            self.goodput.switch("data_wait")
            with whereabouts.phase("data wait", self.total_steps):
                batch = next(there, None)
            telemetry.DATA_WAIT_SECONDS.inc(self.goodput.switch("train"))
            if batch is None:
                return
            yield batch

    def _leave_if_stopped(self) -> None:
        """Where all ranks agreed to stop: save, wait for each other, and leave for good."""
        if self.agreement.stopped:
            self.save_for_good()
            if self.folder is not None:
                self.folder.close()  # or whoever goes on would have to wait for a sign of life
            self.agreement.meet()  # a rank that leaves makes torchrun end those that still save
            self.log.say("stopped by a signal; saved. The same command goes on from here")
            self.log.close()
            leave(SAVED_EXIT_CODE)

    def look(self) -> None:
        """Read, show and record what the steps since the last look did, if there were any.

        Raises:
            TrainingError: too many of them were skipped.
        """
        learner = self.learner
        if self.log.new_steps(self.position):
            figures = learner.tally.read()
            for line in self.faults.look(figures, self.total_steps, learner.loss_scale()):
                self.log.say(line)
            for line in self.stragglers.look(learner.work.mean_seconds()):
                self.log.say(line)
            batch = self.settings.train.global_batch
            self.log.training(self.position, figures.counts(batch, learner.rate))
            garbage.collect()

    def save(self, must: bool = False) -> None:
        """Have a checkpoint written in the background; `must` waits for the one before."""
        self.look()  # a resumed run cannot look at the steps before it
        whereabouts.at("checkpoint", self.total_steps)
        self.saver.save(self.position, self._carried, must)

    def save_for_good(self) -> None:
        """The last checkpoint of this process, which all ranks wait for."""
        self.look()
        whereabouts.at("checkpoint", self.total_steps)
        self.saver.save_for_good(self.position, self._carried)

    @property
    def _carried(self) -> dict[str, Any]:
        """What a checkpoint keeps beside position and learner."""
        return {"validation": self.last_validation, "skipped_steps": self.faults.count}

    def _validate_if_due(self) -> None:
        """Validate where the settings ask for it after these drawings, unless that is done."""
        every = Interval(self.settings.evaluation.every_drawings)
        batch, last = self.settings.train.global_batch, self.last_validation
        passed = every.passed(max(0, self.drawings - batch), self.drawings)
        ended = self.step == self.feed.steps
        done = last is not None and last["step"] == self.total_steps
        if (passed or ended) and not done:
            if ended:
                self.look()
            self.validate()
            self._leave_if_stopped()

    def validate(self) -> None:
        """Measure the averaged weights with rank 0's statistics on the validation split, if any;
        without a result where the ranks agree to stop."""
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
                self.agreement.together(
                    whereabouts.passing("evaluation", self.total_steps, batches)
                ),
                split="val",
                classes=dataset.classes,
                mean=dataset.pixel_mean,
                std=dataset.pixel_std,
                world=world,
                autocast=self.learner.autocast,
                # For the page at the end, which is rank 0's.
                keep_mistakes=MISTAKES if self.position.ended and world.is_first else 0,
            )
            if not self.agreement.stopped:
                self.last_validation = result.figures() | {"step": self.total_steps}
                self.log.evaluation(self.position, result)
