"""What all jobs share: exit codes, and a worker's share of the work."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.process import print_unbuffered, survive_lost_output
from quickdraw_dist.distributed.exits import report


def run(main: Callable[[], None]) -> None:
    """Run a job's main and exit with the code that distributed/exits.py has for its outcome;
    ended by TERM it is 143."""
    survive_lost_output()
    signal.signal(signal.SIGTERM, _end)
    try:
        main()
    except BaseException as error:
        sys.exit(report(error))


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """End on TERM, which the first process of a container would not get without a handler. What is
    finished is published and stays; worker processes end with this one."""
    print_unbuffered("error: ended by TERM. The same command continues from here")
    os._exit(128 + number)


def worker_share(worker: int | None, of: int | None) -> tuple[int, int]:
    """Return this worker's number, from 0, and the number of workers.

    Read from the flags --worker and --of, else from JOB_COMPLETION_INDEX (Kubernetes; needs --of)
    or SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT; one worker by default.

    Raises:
        RefusedError: numbers that are missing or do not fit together.
    """
    if worker is None and (worker := _number("JOB_COMPLETION_INDEX")) is not None and of is None:
        raise RefusedError(
            "JOB_COMPLETION_INDEX", worker, "the number of workers is unknown",
            "Give --of N, the Job's completions",
        )  # fmt: skip
    if worker is None and (worker := _number("SLURM_ARRAY_TASK_ID")) is not None and of is None:
        of = _number("SLURM_ARRAY_TASK_COUNT")
        if of is None:
            problem = "SLURM_ARRAY_TASK_COUNT is not set"
            raise RefusedError("SLURM_ARRAY_TASK_ID", worker, problem, "Give --of N")
    worker, of = worker or 0, 1 if of is None else of
    if of < 1:
        raise RefusedError("--of", of, "no worker", "Give the number of workers, 1 or more")
    if not 0 <= worker < of:
        problem = f"not one of the workers 0 to {of - 1} (--of {of})"
        raise RefusedError("--worker", worker, problem)
    return worker, of


def _number(variable: str) -> int | None:
    """The value of a scheduler's variable, None where it is not set."""
    value = os.environ.get(variable)
    if value is not None and not value.isdigit():
        raise RefusedError(variable, value, "not a number", "Give --worker I --of N")
    return None if value is None else int(value)
