"""Report a run's progress: lines or a live line, metrics.jsonl, TensorBoard and Prometheus."""

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
from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.base.telemetry.phases import Phases, cause_name
from quickdraw_dist.base.units import duration
from quickdraw_dist.distributed import ranks
from quickdraw_dist.evaluation.metrics import Evaluation
from quickdraw_dist.run.folder import RunFolder
from quickdraw_dist.run.position import Position, TrainingMetrics
from quickdraw_dist.run.tensorboard import EventFile
from quickdraw_dist.run.terminal import LiveLine, print_above_bar


class ProgressLog:
    """Rank 0 prints and writes metrics.jsonl; every rank sets its Prometheus metrics."""

    def __init__(self, phases: Phases, folder: RunFolder | None, settings: Metrics) -> None:
        """
        Args:
            folder: the run's on rank 0; None on the other ranks, which print nothing.
        """
        self._phases, self._folder, self._settings = phases, folder, settings
        self._live: LiveLine | None = None
        self._events: EventFile | None = None
        self.validation: Evaluation | None = None  # the last result
        self._logged_steps = 0
        self._loop_seconds = self._wait_seconds = 0.0
        self.restarts = 0

    def say(self, line: str) -> None:
        """Print a line on rank 0, in one write: other threads print, too."""
        if self._folder is not None:
            print(f"{line}\n", end="", flush=True)

    def start(
        self, position: Position, meta: Mapping[str, Any] | None, details: Mapping[str, Any]
    ) -> None:
        """Start to count and time steps; called by all ranks.

        Args:
            position: where the run starts or resumes.
            meta: of the checkpoint that the run resumes from.
            details: further entries of the log's start record.
        """
        previous = self._previous(meta) if self._folder is not None else None
        if (previous := ranks.broadcast_object(previous)) is not None:
            self.restarts = previous["restarts"] + 1
            self._phases.resume(previous["goodput"])
            metrics.RESTARTS.inc(self.restarts)
            metrics.STEPS.inc(position.total_steps)
            metrics.DRAWINGS.inc(position.drawings)
        metrics.EPOCH.set(position.fractional_epoch)
        self._logged_steps = position.total_steps
        self._loop_seconds, self._wait_seconds = self._clocks()
        self._record(position, {"kind": "start", "time": self._phases.started, **details})
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

    def _previous(self, meta: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return restarts and goodput before this process; None at the first start.

        They are the checkpoint's; where none was ever saved, all the time since the first start
        in the log counts as lost to restarts.
        """
        assert self._folder is not None, "only rank 0 has the log"
        records = self._folder.resume_log(meta["step"] if meta is not None else 0)
        if meta is not None:
            return {"restarts": meta["restarts"], "goodput": meta["goodput"]}
        starts = [record["time"] for record in records if record["kind"] == "start"]
        if not starts:
            return None
        return {"restarts": len(starts) - 1, "goodput": {"until": starts[0], "seconds": {}}}

    def advance(self, drawings: int) -> None:
        """Move the live line by the drawings of a step that was started."""
        if self._live is not None:
            self._live.advance(drawings)

    def _clocks(self) -> tuple[float, float]:
        """Return the seconds of the loop so far, without evaluations and checkpoints, and those of
        them that it waited for batches."""
        seconds = self._phases.now()
        return seconds["train"] + seconds["data_wait"], seconds["data_wait"]

    def new_steps(self, position: Position) -> int:
        """Return how many steps have not been logged yet."""
        return position.total_steps - self._logged_steps

    def log_training(self, position: Position, measured: TrainingMetrics) -> None:
        """Log the metrics of the steps since the last call; there must be at least one."""
        steps = self.new_steps(position)
        loop_seconds, waited = self._clocks()
        seconds = max(loop_seconds - self._loop_seconds, 1e-9)
        rate = steps * position.global_batch / seconds
        wait = (waited - self._wait_seconds) / seconds
        self._loop_seconds, self._wait_seconds = loop_seconds, waited
        self._logged_steps = position.total_steps
        _set_gauges(position, measured, steps)
        self._show_training(position, measured, rate, wait)
        speed = {"drawings_per_second": rate, "data_wait_share": wait}
        self._record(
            position, {"kind": "train"} | asdict(measured) | speed | self._goodput_record()
        )

    def _show_training(
        self, position: Position, measured: TrainingMetrics, rate: float, wait: float
    ) -> None:
        """Show drawings per second and the share of time spent waiting for batches, too."""
        left = duration((position.total_drawings - position.drawings) / rate)
        if self._live is not None:
            validated = f"  val {self.validation.top1:.1%}" if self.validation is not None else ""
            self._live.show(
                _epoch(position),
                f"{left} left  {tqdm.format_sizeof(rate)}/s  loss {measured.loss:.3f}  "
                f"acc {measured.accuracy:.1%}{validated}  wait {wait:.1%}",
            )
        else:
            self.say(
                f"{_epoch(position)}  step {position.step:,}/{position.epoch_steps:,}  "
                f"{rate:,.0f} drawings/s  loss {measured.loss:.4f}  "
                f"accuracy {measured.accuracy:.1%}  data wait {wait:.1%}  {left} left"
            )

    def _goodput_record(self) -> dict[str, Any]:
        return {"goodput_seconds": {c: round(s, 3) for c, s in self._phases.now().items()}}

    def log_validation(self, position: Position, result: Evaluation) -> None:
        """Log the metrics of a validation."""
        measured = result.metrics()
        for name in ("top1", "top3", "map3", "mean_class_accuracy"):
            metrics.EVALUATION_ACCURACY.labels(result.split, name).set(getattr(result, name))
        self.validation = result
        recognized = ""
        if result.recognized:  # few may be known to be
            recognized = f" ({result.top1_recognized:.2%} of {result.recognized:,} recognised)"
        self.say(
            f"validation after {position.drawings:,} drawings: top-1 {result.top1:.2%}{recognized}"
            f", top-3 {result.top3:.2%}, MAP@3 {result.map3:.4f}, mean per class "
            f"{result.mean_class_accuracy:.2%}, loss {result.loss:.4f}"
        )
        self._record(position, {"kind": "validation", **measured})

    def _record(self, position: Position, values: dict[str, Any]) -> None:
        """Add a record to metrics.jsonl and the event file; `values` override its time."""
        if self._folder is not None:
            record = _position_record(position)
            # JSON has no NaN: the loss is null where all steps were skipped.
            nans = {k: None for k, v in values.items() if isinstance(v, float) and isnan(v)}
            record |= values | nans
            self._folder.log(record)
            if self._events is not None:
                self._events.add(record)

    def end_record(self, position: Position) -> dict[str, Any]:
        """Return the record of a run that ends now."""
        return _position_record(position) | {"kind": "end"} | self._goodput_record()

    def finish(self, position: Position) -> None:
        """Log the end of the run, and print which causes its time went to."""
        self._record(position, self.end_record(position))
        self.close()
        seconds = self._phases.now()
        total = sum(seconds.values())
        shares = ", ".join(f"{cause_name(c)} {s / total:.1%}" for c, s in seconds.items() if s)
        self.say(f"finished {position.drawings:,} drawings in {duration(total)}: {shares}")
        if self._folder is not None:
            self.say(f"checkpoints and metrics.jsonl are in {self._folder.url}")

    def close(self) -> None:
        """Restore the terminal and close the event file; may be repeated."""
        if self._live is not None:
            self._live.close()
        if self._events is not None:
            self._events.close()
        self._live = self._events = None


def _position_record(position: Position) -> dict[str, Any]:
    """Return the entries that every record has."""
    return {
        "time": time.time(),
        "step": position.total_steps,
        "drawings": position.drawings,
        "epoch": position.fractional_epoch,
    }


def _epoch(position: Position) -> str:
    """Return the current epoch, counted from 1."""
    return f"epoch {min(position.epoch + 1, position.epochs)}/{position.epochs}"


def _set_gauges(position: Position, measured: TrainingMetrics, steps: int) -> None:
    """Set this rank's Prometheus metrics after further `steps`."""
    metrics.LOSS.set(measured.loss)
    metrics.ACCURACY.set(measured.accuracy)
    metrics.GRADIENT_NORM.set(measured.gradient_norm)
    metrics.LEARNING_RATE.set(measured.learning_rate)
    metrics.STEPS.inc(steps)
    metrics.DRAWINGS.inc(steps * position.global_batch)
    metrics.EPOCH.set(position.fractional_epoch)
    metrics.LAST_STEP_TIMESTAMP.set_to_current_time()
    if torch.cuda.is_available():
        metrics.DEVICE_MEMORY_BYTES.set(torch.cuda.max_memory_allocated())
