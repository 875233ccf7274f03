"""Train: torchrun --nproc_per_node=8 -m quickdraw_dist.train (alone: python -m ...)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

EPILOG = """\
  torchrun --nproc_per_node=2 -m quickdraw_dist.train --data data/shards --train.epochs 2
  python -m quickdraw_dist.train --config configs/demo.yaml

The same command again resumes the run in --output. Every setting is also a line of the --config
file and an environment variable: --train.epochs 2 is QUICKDRAW_TRAIN__EPOCHS=2.
Exit codes: 0 done, 2 refused (do not retry), 85 stopped by a signal and saved, otherwise 1.
(Of a rank: torchrun itself ends with 1 whenever one of them is not 0.)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Settings, ranks, dataset, trainer; returns the exit code."""
    from quickdraw_dist import telemetry

    goodput = telemetry.Goodput()  # what follows takes seconds, which are the run's
    from quickdraw_dist import distributed
    from quickdraw_dist.command_line import Parser, load
    from quickdraw_dist.config import Settings
    from quickdraw_dist.errors import CorruptError, RefusedError, TrainingError
    from quickdraw_dist.storage import StorageError
    from quickdraw_dist.stream.feed import open_dataset
    from quickdraw_dist.trainer import Trainer, refuse_impossible

    parser = Parser("quickdraw_dist.train", "Train a classifier on a sharded dataset.", EPILOG)
    try:
        sections = [name for name in Settings.model_fields if name != "shard"]
        settings, _ = load(parser, argv, sections)
        dataset = open_dataset(settings)
        world = distributed.describe(settings.train)
        refuse_impossible(settings, dataset, world.size)
        distributed.join(world)
        if settings.metrics.port:
            telemetry.serve(settings.metrics.host, settings.metrics.port + world.local_rank)
        return Trainer(settings, world, dataset, goodput).run()
    except RefusedError as error:
        return _complain(error, 2, alone=isinstance(error, CorruptError))
    except TrainingError as error:
        return _complain(error, 1)
    except (StorageError, OSError) as error:
        return _complain(error, 1, alone=True)


def _complain(error: object, code: int, alone: bool = False) -> int:
    """Say it once a node, not once a rank; what a rank may be `alone` to see, each of them says."""
    if alone or os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {error}", file=sys.stderr, flush=True)
    return code


def end(code: int) -> NoReturn:
    """Leave at once, without taking the process group and the interpreter apart.

    All ranks have met at the end, files are closed and locks go with the process. Taking apart
    was seen to abort a rank now and then ('terminate called without an active exception'), which
    made a failure of a finished run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        end(main())
    except ModuleNotFoundError as error:
        sys.exit(
            f"error: {error.name} is not installed; run: make install, then . .venv/bin/activate"
        )
