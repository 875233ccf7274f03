"""The loop: stream a global batch, step, log, evaluate, save; stop and resume anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from quickdraw_dist import models
from quickdraw_dist.base.process.garbage import collect_garbage, manual_garbage_collection
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.base.telemetry.device_timer import DeviceTimer
from quickdraw_dist.base.telemetry.phases import Phases
from quickdraw_dist.base.units import counted
from quickdraw_dist.data.feed import Dataset, check_dataset, open_feed
from quickdraw_dist.data.stream.batch import Batch
from quickdraw_dist.data.stream.device import DeviceBatch, on_device
from quickdraw_dist.distributed import ranks
from quickdraw_dist.distributed.agreement import Agreement
from quickdraw_dist.distributed.exits import SAVED
from quickdraw_dist.distributed.ranks import World
from quickdraw_dist.distributed.signals import StopSignal
from quickdraw_dist.distributed.stragglers import Stragglers
from quickdraw_dist.evaluation.metrics import MISTAKES, evaluate
from quickdraw_dist.run import tensorboard
from quickdraw_dist.run.checkpoint import resume
from quickdraw_dist.run.checkpoint.files import Checkpoint
from quickdraw_dist.run.checkpoint.saver import Saver
from quickdraw_dist.run.folder import RunFolder
from quickdraw_dist.run.position import Interval, Position
from quickdraw_dist.run.progress import ProgressLog
from quickdraw_dist.run.report.page import write_final_report
from quickdraw_dist.training.faults import FaultLog
from quickdraw_dist.training.learner import Learner
from quickdraw_dist.training.profiler import StepProfiler


def check_settings(settings: Settings, dataset: Dataset, world_size: int) -> None:
    """Check what needs no other rank and no data, before any rank waits for another.

    Raises:
        RefusedError: names the setting, its value and what to do.
    """
    models.check(settings.model)
    tensorboard.check(settings)
    check_dataset(settings, dataset, world_size)


class Trainer:
    """One rank of one run. `epoch` and `step` (in the epoch) are the whole position."""

    def __init__(
        self,
        settings: Settings,
        world: World,
        dataset: Dataset,
        phases: Phases,
        folder: RunFolder | None,
        stop: StopSignal | None = None,
    ) -> None:
        """Build everything; no state is loaded yet, and external data is only read to count it.

        Args:
            settings, world, dataset: of the run.
            phases: the process's clock.
            folder: rank 0's; None on the other ranks.
            stop: sees this process's signals; None: they are the caller's.
        """
        self.settings, self.world, self.phases, self.folder = settings, world, phases, folder
        self.stop = stop or StopSignal()
        self.step_timer = DeviceTimer(world.device, metrics.STEP_SECONDS.observe)
        self.agreement = Agreement(
            self.stop,
            settings.train.shutdown_seconds,
            lambda: phases.cause,
            settings.train.collective_timeout_seconds,
        )
        self.resumed, self.setting_changes = resume.find(settings, dataset)
        saved = self.resumed.meta if self.resumed is not None else None
        self.feed = open_feed(settings, dataset, world, saved)
        self.dataset = self.feed.dataset
        self.epoch = self.step = self.total_steps = 0
        total = self.position.total_drawings
        self.learner = Learner(settings, world, self.dataset, total, phases)
        self.last_validation: dict[str, Any] | None = None
        self.log = ProgressLog(phases, folder, settings.metrics)
        self.faults = FaultLog(settings, world, self.dataset.classes)
        self.stragglers = Stragglers(world)
        self.profiler = StepProfiler(settings.train.profile, world, settings.output, self.log.say)
        state = self.learner.checkpoint_state
        self.saver = Saver(settings, self.feed, state, self.log, phases, folder)

    def close(self) -> None:
        """Write what is left of profile and log, and wait for a checkpoint that is being written;
        to be called however the run ended."""
        with contextlib.closing(self.log), contextlib.closing(self.saver):
            if not self.agreement.stopped:  # a stop has no time for a profile
                self.profiler.close()

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
        """Train to the end or to a signal, and return the exit code: 0 or 85."""
        epochs = self.settings.train.epochs
        if self.resumed is not None and self.resumed.meta["epoch"] >= epochs:
            self.log.say(
                f"{self.settings.output}: this run is finished ({counted(epochs, 'epoch')})"
            )
            return 0
        self._begin()
        self._validate_if_due()  # a signal may have stopped the run while it evaluated
        with manual_garbage_collection():
            while self.epoch < epochs and not self.agreement.stopped:
                self._train_epoch()
                if not self.agreement.stopped:
                    self.epoch, self.step = self.epoch + 1, 0
                    if self.epoch < epochs:
                        self.save(wait_for_previous=True)
        self.save_final()
        if self.agreement.stopped and self.folder is not None:
            self.folder.close()  # now: torchrun may kill this rank once another one has left
        self.agreement.meet()  # a rank that ends makes torchrun end those that still save
        if self.agreement.stopped:
            self.log.say("stopped by a signal and saved. The same command continues from here")
            return SAVED
        if self.folder is not None and self.settings.metrics.report:
            with self.phases("evaluation", self.total_steps):
                end = self.log.end_record(self.position)
                self.log.say(write_final_report(self.folder, self.log.validation, end))
        self.log.finish(self.position)
        return 0

    def _begin(self) -> None:
        """Warm up, load what is resumed, and say what is about to happen."""
        with self.phases("compile", 0):
            self.learner.warm_up(self.feed.noise().to(self.world.device))
        if self.resumed is not None:
            self._load(self.resumed)
        meta = self.resumed.meta if self.resumed is not None else None
        self.log.start(self.position, meta, self._introduce())
        self.learner.model.train()

    def _load(self, saved: Checkpoint) -> None:
        meta = saved.meta
        self.learner.load(saved)
        self.epoch, self.step, self.total_steps = meta["epoch"], meta["step_in_epoch"], meta["step"]
        self.last_validation = meta["validation"]
        self.faults.resume(meta.get("skipped_steps", 0))
        self.saver.resume(meta["order_digest"], self.position, self._carried)

    def _introduce(self) -> dict[str, Any]:
        """Print what is about to happen; return what the log keeps of it."""
        about = {
            "model": self.settings.model.name,
            "parameters": sum(p.numel() for p in self.learner.model.parameters()),
            "classes": len(self.dataset.classes),
            "ranks": self.world.size,
            "device": self.world.device.type,
            "precision": self.learner.precision,
        }
        shown = "{model} of {parameters:,} parameters, {classes} classes, {ranks} x {device}, "
        self.log.say((shown + "{precision}").format(**about))
        for line in self.feed.start_lines(self.step):
            self.log.say(line)
        if self.resumed is not None:
            position = f"epoch {self.epoch + 1}, step {self.step:,} of {self.feed.steps:,}"
            self.log.say(f"resumed {self.resumed.url}: {position}")
            for change in self.setting_changes:
                self.log.say(f"  changed since: {change}")
        return about

    def _train_epoch(self) -> None:
        """Train the rest of the current epoch and validate; or stop at a signal."""
        every_checkpoint = Interval(self.settings.checkpoint.every_drawings)
        if self.step == self.feed.steps:
            return
        with contextlib.ExitStack() as loader:
            batches = self.feed.epoch(self.epoch, self.step)
            loader.enter_context(contextlib.closing(batches))
            for batch in self.agreement.until_stopped(self._timed(batches)):
                before = self.drawings
                self._step(batch)
                if self.total_steps % self.settings.train.log_every == 0:
                    self.log_metrics()
                self._validate_if_due()
                due = every_checkpoint.passed(before, self.drawings)
                if due and self.step < self.feed.steps and not self.agreement.stopped:
                    self.save()
            if self.agreement.stopped:
                self.stop.abandoned.append(loader.pop_all())  # closing it may wait for a store

    def _step(self, batch: DeviceBatch) -> None:
        """Take one optimizer step."""
        with self.step_timer:
            self.learner.step(batch.drawings, batch.labels, self.total_steps)
        first = self.feed.share.position(self.step)
        self.saver.order_digest.add(self.epoch, first, batch.host.labels, batch.host.rows)
        self.faults.remember(batch.host)
        self.step += 1
        self.total_steps += 1
        self.log.advance(self.settings.train.global_batch)

    def _timed(self, batches: Iterator[Batch]) -> Iterator[DeviceBatch]:
        """Yield the batches on the device; the time they are waited for is charged to the data."""
        there = on_device(batches, self.world.device)
        while True:
            self.profiler.step()
            with self.phases("data wait", self.total_steps):
                batch = next(there, None)
            if batch is None:
                return
            yield batch

    def log_metrics(self) -> None:
        """Read, print and record what the steps since the last call did, if there were any.

        Raises:
            TrainingError: too many of them were skipped.
        """
        learner = self.learner
        if self.log.new_steps(self.position):
            steps = learner.tally.read()
            for line in self.faults.check(steps, self.total_steps, learner.loss_scale()):
                self.log.say(line)
            for line in self.stragglers.compare_ranks(learner.work.mean_seconds()):
                self.log.say(line)
            batch = self.settings.train.global_batch
            self.log.log_training(self.position, steps.summary(batch, learner.rate))
            collect_garbage()

    # -- state ---------------------------------------------------------------------------------

    def save(self, wait_for_previous: bool = False) -> None:
        """Have a checkpoint written in the background. While the one before is still being
        written this one is skipped, unless it is to wait for it."""
        self.log_metrics()  # a resumed run cannot read the steps before it
        with self.phases("checkpoint", self.total_steps):
            self.saver.save(self.position, self._carried, wait_for_previous)

    def save_final(self) -> None:
        """Write the last checkpoint of this process; all ranks wait for it."""
        self.log_metrics()
        with self.phases("checkpoint", self.total_steps):
            self.saver.save_final(self.position, self._carried)

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
                self.log_metrics()
            self.validate()

    def validate(self) -> None:
        """Measure the averaged weights with rank 0's buffers on the validation split, if there is
        one; without a result where the ranks agree to stop."""
        batches = self.feed.validation()
        if batches is None:
            return
        with self.phases("evaluation", self.total_steps):
            world, settings, dataset = self.world, self.settings, self.dataset
            raster = self.learner.source.raster
            model = models.build(
                settings.model, len(dataset.classes), raster.channels, raster.side
            ).to(world.device)
            model.load_state_dict(self.learner.averaged_weights())
            ranks.broadcast_tensors(model.state_dict().values())
            tracked = self.phases.track("evaluation", self.total_steps, batches)
            result = evaluate(
                model,
                self.agreement.until_stopped(tracked),
                split="val",
                classes=dataset.classes,
                source=self.learner.source,
                world=world,
                autocast=self.learner.autocast,
                # For the page at the end, which is rank 0's.
                keep_mistakes=MISTAKES if self.position.ended and world.is_first else 0,
            )
            if self.agreement.stopped:
                self.stop.abandoned.append(batches)  # closing it may wait for a store
                return
            if not result.drawings:  # external shards without a sample
                return
            self.last_validation = result.metrics() | {"step": self.total_steps}
            self.log.log_validation(self.position, result)
