"""What a person sees of a run: a line every few steps, metrics.jsonl, Prometheus gauges."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from quickdraw_dist import distributed, telemetry
from quickdraw_dist.errors import TrainingError
from quickdraw_dist.evaluation import Evaluation

if TYPE_CHECKING:
    from quickdraw_dist.trainer import Trainer


class Interval:
    """Fires whenever a growing count of drawings passes a multiple; never when it is 0."""

    def __init__(self, every: int) -> None:
        """Every so many drawings."""
        self.every = every

    def passed(self, before: int, after: int) -> bool:
        """Whether a multiple lies in (before, after]: the same after any restart."""
        return self.every > 0 and before // self.every != after // self.every


def duration(seconds: float) -> str:
    """'1:02:03' or '2:03'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ProgressLog:
    """Reads the trainer's counters every `train.log_every` steps; rank 0 prints and writes."""

    def __init__(self, trainer: Trainer) -> None:
        """The clock starts with `start`."""
        self._trainer = trainer
        self._since = time.monotonic()
        self._waited = 0.0
        self._idle = 0.0
        self.restarts = 0

    def say(self, line: str) -> None:
        """A line from the first rank."""
        if self._trainer.world.is_first:
            print(line, flush=True)

    def resume(self, meta: dict[str, Any]) -> None:
        """Go on from a checkpoint's counters."""
        trainer = self._trainer
        self.restarts = meta["restarts"] + 1
        trainer.goodput.resume(meta["goodput_seconds"])
        telemetry.RESTARTS.inc(self.restarts)
        telemetry.STEPS.inc(meta["step"])
        telemetry.DRAWINGS.inc(meta["drawings"])
        if trainer.run_folder is not None:
            trainer.run_folder.resume_log(meta["step"])

    def start(self) -> None:
        """Say what is about to happen."""
        t = self._trainer
        parameters = sum(p.numel() for p in t.learner.model.parameters())
        self.say(
            f"{t.settings.model.name} of {parameters:,} parameters, {len(t.dataset.classes)} "
            f"classes, {t.world.size} x {t.world.device.type}, {t.learner.precision}"
        )
        for line in t.feed.describe(t.step):
            self.say(line)
        if t.resumed is not None:
            self.say(
                f"resumed {t.resumed.url}: epoch {t.epoch + 1}, step {t.step:,} of {t.feed.steps:,}"
            )
            for change in t.setting_changes:
                self.say(f"  changed since: {change}")
        self._reset()

    def _reset(self) -> None:
        self._since = time.monotonic()
        self._waited = self._trainer.goodput.seconds["data_wait"]
        self._idle = self._off_loop()
        self._steps = self._trainer.total_steps

    def _off_loop(self) -> float:
        """Seconds of evaluating and saving so far: not the loop's speed."""
        seconds = self._trainer.goodput.seconds
        return seconds["evaluation"] + seconds["checkpoint"]

    def read_counts(self) -> tuple[float, float, float]:
        """Loss and accuracy since the last look, over all ranks, and the gradient's norm.

        Waits for the device, so it is called only every few steps.

        Raises:
            TrainingError: the loss is not a number any more.
        """
        t = self._trainer
        loss, right = distributed.sum_over_ranks(t.learner.counts.clone()).tolist()
        t.learner.counts.zero_()
        drawings = (t.total_steps - self._steps) * t.settings.train.global_batch
        mean = loss / drawings
        if not torch.isfinite(torch.tensor(mean)):
            raise TrainingError(
                f"the loss became {mean} between steps {self._steps:,} and {t.total_steps:,}; the "
                "last checkpoint stands. A lower --optimizer.learning_rate, or --train.precision "
                "fp32, may help"
            )
        return mean, right / drawings, float(t.learner.gradient_norm)

    def write(self) -> None:
        """The progress line of the steps since the last one, if there were any."""
        t = self._trainer
        if t.total_steps == self._steps:
            return
        loss, accuracy, norm = self.read_counts()
        steps = t.total_steps - self._steps
        t.goodput.switch("train")  # bring the stopwatch up to now
        seconds = time.monotonic() - self._since - (self._off_loop() - self._idle)
        rate = steps * t.settings.train.global_batch / max(seconds, 1e-9)
        wait = (t.goodput.seconds["data_wait"] - self._waited) / max(seconds, 1e-9)
        left = (t.total_drawings - t.drawings) / rate
        self._set_gauges(loss, accuracy, norm, steps)
        self.say(
            f"epoch {t.epoch + 1}/{t.settings.train.epochs}  step {t.step:,}/{t.feed.steps:,}  "
            f"{rate:,.0f} drawings/s  loss {loss:.4f}  accuracy {accuracy:.1%}  "
            f"data wait {wait:.1%}  {duration(left)} left"
        )
        self._record(
            {
                "kind": "train",
                "loss": loss,
                "accuracy": accuracy,
                "gradient_norm": norm,
                "learning_rate": t.learner.rate,
                "drawings_per_second": rate,
                "data_wait_share": wait,
            }
        )
        self._reset()

    def _set_gauges(self, loss: float, accuracy: float, norm: float, steps: int) -> None:
        t = self._trainer
        telemetry.LOSS.set(loss)
        telemetry.ACCURACY.set(accuracy)
        telemetry.GRADIENT_NORM.set(norm)
        telemetry.LEARNING_RATE.set(t.learner.rate)
        telemetry.STEPS.inc(steps)
        telemetry.DRAWINGS.inc(steps * t.settings.train.global_batch)
        telemetry.EPOCH.set(t.epoch + t.step / t.feed.steps)
        telemetry.LAST_STEP_TIMESTAMP.set_to_current_time()
        if t.world.device.type == "cuda":
            telemetry.DEVICE_MEMORY_BYTES.set(torch.cuda.max_memory_allocated())

    def evaluation(self, result: Evaluation) -> None:
        """A line for an evaluation."""
        t = self._trainer
        for metric in ("top1", "top3", "map3", "mean_class_accuracy"):
            value = result.figures()[metric]
            telemetry.EVALUATION_ACCURACY.labels(result.split, metric).set(float(value))
        self.say(
            f"validation after {t.drawings:,} drawings: top-1 {result.top1:.2%}, top-3 "
            f"{result.top3:.2%}, MAP@3 {result.map3:.4f}, mean per class "
            f"{result.mean_class_accuracy:.2%}, loss {result.loss:.4f}"
        )
        self._record({"kind": "validation", **result.figures()})

    def _record(self, figures: dict[str, Any]) -> None:
        t = self._trainer
        if t.run_folder is not None:
            place = {"time": time.time(), "step": t.total_steps, "drawings": t.drawings}
            t.run_folder.log(place | {"epoch": t.epoch + t.step / t.feed.steps} | figures)

    def finish(self) -> None:
        """Say where the time went."""
        t = self._trainer
        t.goodput.switch("train")
        total = sum(t.goodput.seconds.values())
        shares = ", ".join(f"{c} {s / total:.1%}" for c, s in t.goodput.seconds.items() if s)
        self.say(f"finished {t.drawings:,} drawings in {duration(total)}: {shares}")
        self.say(f"checkpoints and metrics.jsonl are in {t.settings.output}")
