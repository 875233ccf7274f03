"""Save checkpoints in the background while training continues, and survive failed writes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from quickdraw_dist.base.errors import StorageError, TrainingError
from quickdraw_dist.base.settings import Settings
from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.base.telemetry.phases import Phases
from quickdraw_dist.data.feed import Feed
from quickdraw_dist.data.order.digest import OrderDigest
from quickdraw_dist.distributed import ranks
from quickdraw_dist.models.input import Raster
from quickdraw_dist.run.checkpoint import files
from quickdraw_dist.run.checkpoint.snapshot import Snapshot
from quickdraw_dist.run.folder import RunFolder
from quickdraw_dist.run.position import Position
from quickdraw_dist.run.progress import ProgressLog


class _NonFiniteError(Exception):
    """Weights that contain NaN or inf; a checkpoint of them would replace a good one."""


class Saver:
    """Writes a run's checkpoints; every rank has a saver and calls it at the same steps.

    Rank 0 copies the state, which is the only pause, and a thread writes the copy while training
    continues. The ranks wait for the last checkpoint only.
    """

    def __init__(
        self,
        settings: Settings,
        feed: Feed,
        learner_state: Callable[[], Mapping[str, Any]],
        log: ProgressLog,
        phases: Phases,
        folder: RunFolder | None,
    ) -> None:
        """
        Args:
            learner_state: returns `weights` and `average` by name and `state`, an optimizer's
                containers; called at each save, and its tensors are copied at once.
            folder: rank 0's; None on the other ranks, which write nothing.
        """
        self._settings, self._feed, self._learner_state = settings, feed, learner_state
        self._log, self._phases, self._folder = log, phases, folder
        group = ranks.processor_group(settings.train.collective_timeout_seconds)
        self.order_digest = OrderDigest(group)
        self.pauses_seconds: list[float] = []
        self._snapshot = Snapshot()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[str] | None = None
        self._in_progress: object = None  # state captured by the checkpoint being written
        self._last_written: object = None  # state captured by the last complete one

    def resume(self, order_digest: str, position: Position, carried: Mapping[str, Any]) -> None:
        """Continue from a checkpoint of `position`, whose meta.json has `carried`."""
        self.order_digest.resume(order_digest)
        self._last_written = (position, carried)

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
        if self._writing is not None and not self._writing.done() and not wait_for_previous:
            metrics.CHECKPOINTS_SKIPPED.inc()
            self._log.say(
                f"checkpoint skipped at step {position.total_steps:,}: the previous one is "
                "still being written"
            )
            return
        self._wait()
        self._start(self._folder, position, carried, digest)
        self.pauses_seconds.append(time.monotonic() - started)
        metrics.CHECKPOINT_PAUSE_SECONDS.observe(self.pauses_seconds[-1])

    def save_final(self, position: Position, carried: Mapping[str, Any]) -> None:
        """Write the last checkpoint of this process, unless there is one of this very state.

        All ranks wait for it: without it, the work since the previous one is lost.

        Raises:
            TrainingError: it could not be written, or the run has another writer now.
        """
        digest, failure = self.order_digest.total(), ""
        digest()  # here: a rank that exits during this collective takes the others along
        if self._folder is not None:
            self._wait()
            if self._last_written != (position, carried):
                self._start(self._folder, position, carried, digest)
                failure = self._wait()
        failure = ranks.broadcast_object(failure)
        if failure:
            raise TrainingError(
                f"--output {self._settings.output}: the last checkpoint could not be written: "
                f"{failure}. The previous one is intact. Run the same command again, when there "
                "is room, to resume from it"
            )
        if self.pauses_seconds:
            pause = 1000 * statistics.median(self.pauses_seconds)
            self._log.say(
                f"checkpoints: {len(self.pauses_seconds)} in the background, training paused "
                f"{pause:.1f} ms per checkpoint (median)"
            )

    def close(self) -> None:
        """Wait for the checkpoint that is being written."""
        self._thread.shutdown()

    def _wait(self) -> str:
        """Wait for the checkpoint being written; return why it failed, or ''."""
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
            "goodput": self._phases.state(),
            "restarts": self._log.restarts,
            **carried,
        }
        self._in_progress = (position, carried)
        self._writing = self._thread.submit(self._write, folder, position.total_steps, meta, digest)

    def _write(
        self, folder: RunFolder, step: int, meta: dict[str, Any], digest: Callable[[], str]
    ) -> str:
        """Write the snapshot, in the thread; return why that failed, or ''."""
        started, keep = time.monotonic(), self._settings.checkpoint
        try:
            taken = self._snapshot.on_host()
            weights, average = taken["weights"], taken["average"]
            _check_finite({"weights": weights, "average": average})
            complete = self._run_meta() | meta | {"order_digest": digest()}
            folder.check()
            folder.flush()  # first: the log must go up to the checkpoint's step
            files.save(folder.url, step, weights, average, taken["state"], complete)
        except (OSError, StorageError, _NonFiniteError) as error:
            metrics.CHECKPOINT_FAILURES.inc()
            self._log.say(f"checkpoint FAILED at step {step:,}: {error}")
            return str(error)
        self._last_written, seconds = self._in_progress, time.monotonic() - started
        metrics.CHECKPOINTS.inc()
        metrics.CHECKPOINT_SECONDS.inc(seconds)
        self._log.say(f"checkpoint saved at step {step:,} in {seconds:.2f} s")
        try:
            folder.check()
            files.prune(folder.url, step, keep)
        except (OSError, StorageError) as error:
            self._log.say(f"older checkpoints could not be removed: {error}")
        return ""

    def _run_meta(self) -> dict[str, Any]:
        """Return the entries of meta.json that are the same in all checkpoints of this process."""
        dataset = self._feed.dataset
        return {
            "lanes": self._feed.lanes,
            "epoch_drawings": self._feed.drawings,
            "dataset_digest": dataset.digest,
            "classes": list(dataset.classes),
            "normalisation": {"mean": dataset.pixel_mean, "std": dataset.pixel_std},
            "raster": Raster.of(dataset.content, self._settings.strokes).name,
            "config": self._settings.model_dump(mode="json"),
            "versions": files.versions(),
        }


def _check_finite(kinds: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    for kind, tensors in kinds.items():
        for name, value in tensors.items():
            if not value.isfinite().all():
                raise _NonFiniteError(f"{kind} of {name} contain NaN or inf")
