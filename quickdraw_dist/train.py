"""Train: torchrun --nproc_per_node=8 -m quickdraw_dist.train (alone: python -m ...)."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quickdraw_dist.base.orphans import die_with_parent
from quickdraw_dist.distributed.signals import StopSignal, leave

if TYPE_CHECKING:
    from quickdraw_dist.base.settings import Settings

EPILOG = """\
  torchrun --nproc_per_node=2 -m quickdraw_dist.train --data data/shards --train.epochs 2
  python -m quickdraw_dist.train --config configs/demo.yaml

The same command again resumes the run in --output. Every setting is also a line of the --config
file and an environment variable: --train.epochs 2 is QUICKDRAW_TRAIN__EPOCHS=2.
Exit codes: 0 done, 2 refused (do not retry), 85 stopped by a signal and saved, otherwise 1.
(torchrun itself ends with 1 whenever a rank's is not 0; python -m quickdraw_dist.launch in its
place passes them on.)
"""

_PATIENCE_SECONDS = 5.0
"""That a rank leaves the node's first one to say the same."""


def read_settings(argv: Sequence[str] | None = None) -> Settings:
    """What a command line, with environment and YAML file, asks for.

    Raises:
        RefusedError: something that cannot be.
        SystemExit: after --help, --print-config or an unknown argument.
    """
    from quickdraw_dist.base.command_line import Parser, load
    from quickdraw_dist.base.settings import Settings

    parser = Parser("quickdraw_dist.train", "Train a classifier on a sharded dataset.", EPILOG)
    sections = [name for name in Settings.model_fields if name != "shard"]
    return load(parser, argv, sections)[0]


def main(argv: Sequence[str] | None = None, stop: StopSignal | None = None) -> int:
    """Settings, ranks, dataset, trainer; returns the exit code, or leaves with 85 after a signal
    that `stop` saw."""
    from quickdraw_dist.base.telemetry import metrics as telemetry

    goodput = telemetry.Goodput()  # what follows takes seconds, which are the run's
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
        with dog, run_folder.held(settings.output) as folder:
            trainer = Trainer(settings, world, dataset, goodput, folder, stop)
            with contextlib.closing(trainer.log), contextlib.closing(trainer.saver):
                return trainer.run()
    except RefusedError as error:
        return _complain(error, 2, alone=isinstance(error, CorruptError))
    except TrainingError as error:
        return _complain(error, 1)
    except (StorageError, OSError) as error:
        return _complain(error, 1, alone=True)
    except RuntimeError:
        stop.excuse()
        raise


def _complain(error: object, code: int, alone: bool = False) -> int:
    """Say it once a node, not once a rank; what a rank may be `alone` to see, each of them says.

    Bare torchrun prints 40 lines about an exit code; what stands in its error file is among them.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # of this rank: FOLDER/LOCAL_RANK/error.json
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if alone or first or (file and not _first_has_said(Path(file))):
        print(f"error: {error}", file=sys.stderr, flush=True)
    if file:
        told = {"message": f"error: {error}", "timestamp": int(time.time())}
        Path(file).write_text(json.dumps(told), encoding="utf-8")
    return code


def _first_has_said(own: Path) -> bool:
    """Whether the node's first rank has said what is wrong; waits for it, since torchrun ends the
    ranks that are left as soon as one has."""
    firsts, until = own.parent.parent / "0" / own.name, time.monotonic() + _PATIENCE_SECONDS
    while not (said := firsts.exists()) and time.monotonic() < until:
        time.sleep(0.01)
    return said


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
