"""What a person sees of a run: a line every few steps, metrics.jsonl, Prometheus gauges."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from math import isnan
from typing import Any

import torch
from tqdm import tqdm

from quickdraw_dist.base.settings import Metrics
from quickdraw_dist.base.telemetry import metrics as telemetry
from quickdraw_dist.base.telemetry.metrics import Goodput
from quickdraw_dist.base.units import duration
from quickdraw_dist.distributed import ranks as distributed
from quickdraw_dist.evaluation.metrics import Evaluation
from quickdraw_dist.run.folder import RunFolder
from quickdraw_dist.run.position import Position, TrainingMetrics
from quickdraw_dist.run.tensorboard import EventFile
from quickdraw_dist.run.terminal import LiveLine, print_above_bar


class ProgressLog:
    """Rank 0 prints what it is told and writes metrics.jsonl; every rank sets its metrics."""

    def __init__(self, goodput: Goodput, folder: RunFolder | None, settings: Metrics) -> None:
        """`folder` is rank 0's; the others have none and say nothing."""
        self._goodput, self._folder, self._settings = goodput, folder, settings
        self._live: LiveLine | None = None
        self._events: EventFile | None = None
        self.validation: Evaluation | None = None  # the last one
        self._shown_steps = 0
        self._loop_seconds = self._waited = 0.0
        self.restarts = 0

    def say(self, line: str) -> None:
        """A line from the first rank."""
        if self._folder is not None:
            print(f"{line}\n", end="", flush=True)  # at once: other threads say things, too

    def start(
        self, position: Position, meta: Mapping[str, Any] | None, facts: Mapping[str, Any]
    ) -> None:
        """From here on steps are counted and timed. `meta` is the checkpoint's that the run goes
        on from, `facts` go into the log. Called by all ranks."""
        past = self._past(meta) if self._folder is not None else None
        if (past := distributed.broadcast_object(past)) is not None:
            self.restarts = past["restarts"] + 1
            self._goodput.resume(past["goodput"])
            telemetry.RESTARTS.inc(self.restarts)
            telemetry.STEPS.inc(position.total_steps)
            telemetry.DRAWINGS.inc(position.drawings)
        telemetry.EPOCH.set(position.passes)
        self._shown_steps = position.total_steps
        self._loop_seconds, self._waited = self._clocks()
        self._record(position, {"kind": "start", "time": self._goodput.started, **facts})
        on_terminal = sys.stdout.isatty()
        if self._folder is None:
            if on_terminal:
                print_above_bar()
            return
        self._folder.flush()
        if self._settings.tensorboard:
            self._events = EventFile(self._folder.url, position.total_steps)
        if on_terminal:
            self._live = LiveLine(position.drawings, position.total_drawings)
            self._live.show(_epoch(position), "")

    def _past(self, meta: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Restarts and goodput before this process: its checkpoint's, or if none was ever saved,
        all the time since the start that the log tells of. None: this is the first start."""
        assert self._folder is not None, "only the first rank has a past"
        records = self._folder.resume_log(meta["step"] if meta is not None else 0)
        if meta is not None:
            return {"restarts": meta["restarts"], "goodput": meta["goodput"]}
        starts = [record["time"] for record in records if record["kind"] == "start"]
        if not starts:
            return None
        return {"restarts": len(starts) - 1, "goodput": {"until": starts[0], "seconds": {}}}

    def advance(self, drawings: int) -> None:
        """A step with so many drawings was begun; nothing of it is known yet."""
        if self._live is not None:
            self._live.advance(drawings)

    def _clocks(self) -> tuple[float, float]:
        """Seconds of the loop so far, and of its waiting for batches; evaluating and saving are
        not its speed."""
        seconds = self._goodput.now()
        return seconds["train"] + seconds["data_wait"], seconds["data_wait"]

    def new_steps(self, position: Position) -> int:
        """Steps that were not shown yet."""
        return position.total_steps - self._shown_steps

    def log_training(self, position: Position, counts: TrainingMetrics) -> None:
        """The figures of the steps since the last look; there must be some."""
        steps = self.new_steps(position)
        loop_seconds, waited = self._clocks()
        seconds = max(loop_seconds - self._loop_seconds, 1e-9)
        rate = steps * position.global_batch / seconds
        wait = (waited - self._waited) / seconds
        left = (position.total_drawings - position.drawings) / rate
        self._shown_steps, self._loop_seconds, self._waited = (
            position.total_steps,
            loop_seconds,
            waited,
        )
        telemetry.LOSS.set(counts.loss)
        telemetry.ACCURACY.set(counts.accuracy)
        telemetry.GRADIENT_NORM.set(counts.gradient_norm)
        telemetry.LEARNING_RATE.set(counts.learning_rate)
        telemetry.STEPS.inc(steps)
        telemetry.DRAWINGS.inc(steps * position.global_batch)
        telemetry.EPOCH.set(position.passes)
        telemetry.LAST_STEP_TIMESTAMP.set_to_current_time()
        if torch.cuda.is_available():
            telemetry.DEVICE_MEMORY_BYTES.set(torch.cuda.max_memory_allocated())
        if self._live is not None:
            validated = f"  val {self.validation.top1:.1%}" if self.validation is not None else ""
            self._live.show(
                _epoch(position),
                f"{duration(left)} left  {tqdm.format_sizeof(rate)}/s  loss {counts.loss:.3f}  "
                f"acc {counts.accuracy:.1%}{validated}  wait {wait:.1%}",
            )
        else:
            self.say(
                f"{_epoch(position)}  step {position.step:,}/{position.epoch_steps:,}  "
                f"{rate:,.0f} drawings/s  loss {counts.loss:.4f}  accuracy {counts.accuracy:.1%}  "
                f"data wait {wait:.1%}  {duration(left)} left"
            )
        speed = {"drawings_per_second": rate, "data_wait_share": wait}
        self._record(position, {"kind": "train"} | asdict(counts) | speed | self._goodput_record())

    def _goodput_record(self) -> dict[str, Any]:
        return {"goodput_seconds": {c: round(s, 3) for c, s in self._goodput.now().items()}}

    def log_validation(self, position: Position, result: Evaluation) -> None:
        """The figures of a validation."""
        for metric in ("top1", "top3", "map3", "mean_class_accuracy"):
            value = result.metrics()[metric]
            telemetry.EVALUATION_ACCURACY.labels(result.split, metric).set(float(value))
        self.validation = result
        self.say(
            f"validation after {position.drawings:,} drawings: top-1 {result.top1:.2%}, top-3 "
            f"{result.top3:.2%}, MAP@3 {result.map3:.4f}, mean per class "
            f"{result.mean_class_accuracy:.2%}, loss {result.loss:.4f}"
        )
        self._record(position, {"kind": "validation", **result.metrics()})

    def _record(self, position: Position, figures: dict[str, Any]) -> None:
        if self._folder is not None:
            place = {"time": time.time(), "step": position.total_steps}
            place |= {"drawings": position.drawings, "epoch": position.passes}
            # JSON has no nan: the loss of nothing but skipped steps is null.
            nans = {k: None for k, v in figures.items() if isinstance(v, float) and isnan(v)}
            record = place | figures | nans
            self._folder.log(record)
            if self._events is not None:
                self._events.add(record)

    def finish(self, position: Position) -> None:
        """Say where the time went."""
        self._record(position, {"kind": "end"} | self._goodput_record())
        self.close()
        seconds = self._goodput.now()
        total = sum(seconds.values())
        names = {cause: cause.replace("_", " ") for cause in seconds} | {"restart": "starting"}
        shares = ", ".join(f"{names[cause]} {s / total:.1%}" for cause, s in seconds.items() if s)
        self.say(f"finished {position.drawings:,} drawings in {duration(total)}: {shares}")
        if self._folder is not None:
            self.say(f"checkpoints and metrics.jsonl are in {self._folder.url}")

    def close(self) -> None:
        """Give the terminal back as it was, and write what is left; again does no harm."""
        if self._live is not None:
            self._live.close()
        if self._events is not None:
            self._events.close()
        self._live = self._events = None


def _epoch(position: Position) -> str:
    """The epoch under way, counted from 1."""
    return f"epoch {min(position.epoch + 1, position.epochs)}/{position.epochs}"
