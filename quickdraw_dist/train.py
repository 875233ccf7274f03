"""Train: torchrun --nproc_per_node=8 -m quickdraw_dist.train (alone: python -m ...)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from quickdraw_dist.base.process.cpus import share_processors
from quickdraw_dist.base.process.output import survive_lost_output
from quickdraw_dist.base.process.parent import die_with_parent
from quickdraw_dist.distributed.exits import SAVED, leave, report
from quickdraw_dist.distributed.signals import StopSignal

if TYPE_CHECKING:
    from quickdraw_dist.base.telemetry.phases import Phases


def main(argv: Sequence[str] | None = None, stop: StopSignal | None = None) -> int:
    """Train as a command line asks, and return the exit code; an expected error is printed.

    `stop` sees this process's signals; without it they are the caller's.
    """
    from quickdraw_dist.base.telemetry.phases import Phases

    phases = Phases()  # first: loading torch takes seconds, which are the run's
    from quickdraw_dist.base.errors import RefusedError, StorageError, TrainingError

    stop = stop or StopSignal()
    try:
        return _train(argv, stop, phases)
    except (RefusedError, TrainingError, StorageError, OSError) as error:
        return report(error)
    except RuntimeError:
        if stop.peer_stopped():
            return SAVED
        raise


def _train(argv: Sequence[str] | None, stop: StopSignal, phases: Phases) -> int:
    """Settings, dataset, ranks, trainer: each is checked before the next is made."""
    from quickdraw_dist.base.command_line import read_settings
    from quickdraw_dist.base.telemetry import metrics
    from quickdraw_dist.data.feed import open_dataset
    from quickdraw_dist.distributed import ranks, start_checks, watchdog
    from quickdraw_dist.run import folder
    from quickdraw_dist.training.trainer import Trainer, check_settings

    settings = read_settings(argv)
    world = ranks.World.from_environment(settings.train)
    dataset = open_dataset(settings)
    check_settings(settings, dataset, world.size)
    if world.device.type == "cuda":
        watchdog.record_collectives(settings.output)
    ranks.join(world, settings.train.collective_timeout_seconds)
    start_checks.check_same(settings, dataset.digest)
    if settings.metrics.port:
        metrics.serve(settings.metrics.host, settings.metrics.port + world.local_rank)
    with (
        watchdog.watch(world, phases, settings.train),
        folder.locked(settings.output) as locked,
        closing(Trainer(settings, world, dataset, phases, locked, stop)) as trainer,
    ):
        return trainer.run()


def _run() -> int:
    """Be a process: answer signals from the first line on, and end with the parent."""
    survive_lost_output()
    share_processors()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    stop = StopSignal()
    stop.watch()
    try:
        return main(stop=stop)
    except BaseException as error:
        return report(error)


if __name__ == "__main__":
    leave(_run())
