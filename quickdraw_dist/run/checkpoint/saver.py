"""Saving a run: what goes into a checkpoint, when, and what happens when it cannot be written."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from quickdraw_dist.base.errors import TrainingError
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.base.storage import StorageError
from quickdraw_dist.base.telemetry import metrics as telemetry
from quickdraw_dist.data.feed import Feed
from quickdraw_dist.data.order.digest import OrderDigest
from quickdraw_dist.distributed import ranks as distributed
from quickdraw_dist.run.checkpoint import files as checkpoint
from quickdraw_dist.run.checkpoint.snapshot import Snapshot
from quickdraw_dist.run.folder import RunFolder
from quickdraw_dist.run.position import Position
from quickdraw_dist.run.progress import ProgressLog


class _NotNumbersError(Exception):
    """Weights that training has broken: saved, they would take the place of good ones."""


class Saver:
    """Writes a run's checkpoints; every rank has one and calls it at the same steps.

    The first rank copies the state, which is the whole pause, and a thread writes the copy while
    training goes on. No rank waits for its outcome, but for that of the last one.
    """

    def __init__(
        self,
        settings: Settings,
        feed: Feed,
        learner_state: Callable[[], Mapping[str, Any]],
        log: ProgressLog,
        goodput: telemetry.Goodput,
        folder: RunFolder | None,
    ) -> None:
        """
        Args:
            learner_state: returns `weights` and `average` by name and `state`, an optimizer's
                containers; called at each save, and its tensors are copied at once.
            folder: rank 0's; None on the other ranks, which write nothing.
        """
        self._settings, self._feed, self._learner_state = settings, feed, learner_state
        self._log, self._goodput, self._folder = log, goodput, folder
        group = distributed.processor_group(settings.train.patience_seconds)
        self.order_digest = OrderDigest(group)
        self.pauses_seconds: list[float] = []
        self._snapshot = Snapshot()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[str] | None = None
        self._begun: object = None  # what the newest checkpoint is of, whole or not
        self._saved: object = None  # what the newest whole one is of

    def resume(self, order_digest: str, position: Position, carried: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, which is of `position` and has `carried`."""
        self.order_digest.resume(order_digest)
        self._saved = (position, carried)

    def save(self, position: Position, carried: Mapping[str, Any], wait_for_previous: bool) -> None:
        """Write a checkpoint in the background; a failure is reported and counted there.

        While the previous one is still being written, this one is skipped: a store that is slow
        or down must not hold up training, and what a crash could lose meanwhile grows only by the
        time that the store needs anyway.

        Args:
            position: the step that the state belongs to.
            carried: further entries of meta.json.
            wait_for_previous: wait for the previous one instead of skipping this one.

        Raises:
            TrainingError: the run has another writer now.
        """
        started = time.monotonic()
        digest = self.order_digest.total()
        if self._folder is None:
            return
        with self._goodput.during("checkpoint"):
            if self._writing is not None and not self._writing.done() and not wait_for_previous:
                telemetry.CHECKPOINTS_LEFT_OUT.inc()
                self._log.say(
                    f"checkpoint left out at step {position.total_steps:,}: the one before it is "
                    "still being written"
                )
                return
            self._outcome()
            self._start(self._folder, position, carried, digest)
            self.pauses_seconds.append(time.monotonic() - started)
            telemetry.CHECKPOINT_PAUSE_SECONDS.observe(self.pauses_seconds[-1])

    def save_final(self, position: Position, carried: Mapping[str, Any]) -> None:
        """The last checkpoint of this process: without it, its work since the one before is lost.

        All ranks wait for it.

        Raises:
            TrainingError: it could not be written, or the run has another writer now.
        """
        digest, failure = self.order_digest.total(), ""
        with self._goodput.during("checkpoint"):
            digest()  # a rank that left in the midst of it would take the others along
            if self._folder is not None:
                self._outcome()
                if self._saved != (position, carried):
                    self._start(self._folder, position, carried, digest)
                    failure = self._outcome()
            failure = distributed.broadcast_object(failure)
        if failure:
            raise TrainingError(
                f"--output {self._settings.output}: the last checkpoint could not be written: "
                f"{failure}. The one before stands; when there is room again, the same command "
                "goes on from there"
            )
        if self.pauses_seconds:
            pause = 1000 * statistics.median(self.pauses_seconds)
            self._log.say(
                f"checkpoints: {len(self.pauses_seconds)} in the background, training paused "
                f"{pause:.1f} ms for each (median)"
            )

    def close(self) -> None:
        """Let the checkpoint that is being written be finished."""
        self._thread.shutdown()

    def _outcome(self) -> str:
        """Why the checkpoint under way failed, or nothing; waits for it."""
        writing, self._writing = self._writing, None
        return writing.result() if writing is not None else ""

    def _start(
        self,
        folder: RunFolder,
        position: Position,
        carried: Mapping[str, Any],
        digest: Callable[[], str],
    ) -> None:
        self._snapshot.take(self._learner_state())
        meta = {
            "epoch": position.epoch,
            "step_in_epoch": position.step,
            "drawings": position.drawings,
            "goodput": self._goodput.state(),
            "restarts": self._log.restarts,
            **carried,
        }
        self._begun = (position, carried)
        self._writing = self._thread.submit(self._write, folder, position.total_steps, meta, digest)

    def _write(
        self, folder: RunFolder, step: int, meta: dict[str, Any], digest: Callable[[], str]
    ) -> str:
        """Runs in the thread; returns why it failed, or nothing."""
        started, keep = time.monotonic(), self._settings.checkpoint
        try:
            taken = self._snapshot.on_host()
            weights, average = taken["weights"], taken["average"]
            _refuse_what_is_no_number({"weights": weights, "average": average})
            complete = self._facts() | meta | {"order_digest": digest()}
            folder.check()
            folder.flush()  # first: a checkpoint's log goes up to its step
            checkpoint.save(folder.url, step, weights, average, taken["state"], complete)
        except (OSError, StorageError, _NotNumbersError) as error:
            telemetry.CHECKPOINT_FAILURES.inc()
            self._log.say(f"checkpoint FAILED at step {step:,}: {error}")
            return str(error)
        self._saved, seconds = self._begun, time.monotonic() - started
        telemetry.CHECKPOINTS.inc()
        telemetry.CHECKPOINT_SECONDS.inc(seconds)
        self._log.say(f"checkpoint saved at step {step:,} in {seconds:.2f} s")
        try:
            folder.check()
            checkpoint.prune(folder.url, step, keep)
        except (OSError, StorageError) as error:
            self._log.say(f"older checkpoints than that could not be removed: {error}")
        return ""

    def _facts(self) -> dict[str, Any]:
        """What is the same in all checkpoints of this process."""
        dataset = self._feed.dataset
        return {
            "lanes": self._feed.lanes,
            "epoch_drawings": self._feed.drawings,
            "dataset_digest": dataset.digest,
            "classes": list(dataset.classes),
            "normalisation": {"mean": dataset.pixel_mean, "std": dataset.pixel_std},
            "raster": checkpoint.RASTER,
            "config": self._settings.model_dump(mode="json"),
            "versions": checkpoint.versions(),
        }


def _refuse_what_is_no_number(kinds: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    for kind, tensors in kinds.items():
        for name, value in tensors.items():
            if not value.isfinite().all():
                raise _NotNumbersError(f"the {kind} of {name} are no finite numbers any more")
