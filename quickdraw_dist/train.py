"""Train: torchrun --nproc_per_node=8 -m quickdraw_dist.train (alone: python -m ...)."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

from quickdraw_dist.base.orphans import die_with_parent
from quickdraw_dist.distributed.exits import complain, leave
from quickdraw_dist.distributed.signals import StopSignal


def main(argv: Sequence[str] | None = None, stop: StopSignal | None = None) -> int:
    """Settings, ranks, dataset, trainer; returns the exit code, or leaves with 85 after a signal
    that `stop` saw."""
    from quickdraw_dist.base.telemetry import metrics as telemetry

    goodput = telemetry.Goodput()  # what follows takes seconds, which are the run's
    from quickdraw_dist.base.command_line import read_settings
    from quickdraw_dist.base.errors import CorruptError, RefusedError, TrainingError
    from quickdraw_dist.base.storage import StorageError
    from quickdraw_dist.data.feed import open_dataset
    from quickdraw_dist.distributed import ranks as distributed
    from quickdraw_dist.distributed import start_checks, watchdog
    from quickdraw_dist.run import folder as run_folder
    from quickdraw_dist.training.trainer import Trainer, refuse_impossible

    stop = stop or StopSignal()
    try:
        settings = read_settings(argv)
        dataset = open_dataset(settings)
        world = distributed.describe(settings.train)
        refuse_impossible(settings, dataset, world.size)
        if world.device.type == "cuda":
            watchdog.record_collectives(settings.output)
        train = settings.train
        distributed.join(world, train.patience_seconds)
        start_checks.refuse_differences(settings, dataset.digest)
        if settings.metrics.port:
            telemetry.serve(settings.metrics.host, settings.metrics.port + world.local_rank)
        dog = watchdog.watch(world.rank, world.size, train.start_seconds, train.stall_seconds)
        with dog, run_folder.locked(settings.output) as folder:
            trainer = Trainer(settings, world, dataset, goodput, folder, stop)
            with contextlib.closing(trainer.log), contextlib.closing(trainer.saver):
                return trainer.run()
    except RefusedError as error:
        return complain(error, 2, alone=isinstance(error, CorruptError))
    except TrainingError as error:
        return complain(error, 1)
    except (StorageError, OSError) as error:
        return complain(error, 1, alone=True)
    except RuntimeError:
        stop.excuse()
        raise


def _run() -> int:
    """As a process: from its first lines on it answers signals and ends with its parent."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    stop = StopSignal()
    stop.watch()
    try:
        return main(stop=stop)
    except SystemExit as end:  # --help, an unknown argument
        return int(end.code or 0)
    except ModuleNotFoundError as error:
        install = "run: make install, then . .venv/bin/activate"
        print(f"error: {error.name} is not installed; {install}", file=sys.stderr)
    except Exception:
        traceback.print_exc()
    return 1


if __name__ == "__main__":
    leave(_run())
