"""What jobs share: how each ends, and which part of the work a worker has."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.distributed.exits import report


def run(main: Callable[[], None]) -> None:
    """Run a job's main and exit with the code that distributed/exits.py has for its outcome;
    ended by TERM it is 143."""
    signal.signal(signal.SIGTERM, _end)
    try:
        main()
    except BaseException as error:
        sys.exit(report(error))


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """End on TERM, which the first process of a container would not get without a handler. What is
    finished is published and stays; worker processes end with this one."""
    os.write(2, b"error: ended by TERM. The same command continues from here\n")
    os._exit(128 + number)


def worker_share(worker: int | None, of: int | None) -> tuple[int, int]:
    """This worker's number and the number of workers, from its flags or from the scheduler.

    Raises:
        RefusedError: they do not make sense together.
    """
    if worker is None and (worker := _number("JOB_COMPLETION_INDEX")) is not None and of is None:
        raise RefusedError("JOB_COMPLETION_INDEX without --of; give --of N, the Job's completions")
    if worker is None and (worker := _number("SLURM_ARRAY_TASK_ID")) is not None and of is None:
        of = _number("SLURM_ARRAY_TASK_COUNT")
        if of is None:
            raise RefusedError("SLURM_ARRAY_TASK_ID without SLURM_ARRAY_TASK_COUNT; give --of N")
    worker, of = worker or 0, 1 if of is None else of
    if not 0 <= worker < of:
        raise RefusedError(f"--worker {worker} --of {of}: workers are numbered from 0 to {of - 1}")
    return worker, of


def _number(variable: str) -> int | None:
    """A scheduler's variable, None where it is not set."""
    value = os.environ.get(variable)
    if value is not None and not value.isdigit():
        raise RefusedError(f"{variable}={value}: not a number; give --worker I --of N")
    return None if value is None else int(value)
