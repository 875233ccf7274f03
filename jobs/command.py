"""What all jobs share: exit codes, a worker's share of the work, numbers on the command line."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.base.process.output import print_unbuffered, survive_lost_output
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
    or from the variables of a Slurm array, whatever its first number and its step; one worker by
    default. With --of, SLURM_ARRAY_TASK_ID is the worker's number.

    Raises:
        RefusedError: numbers that are missing or do not fit together.
    """
    given = "--worker"
    if worker is None and (worker := _number("JOB_COMPLETION_INDEX")) is not None:
        given = "JOB_COMPLETION_INDEX"
        if of is None:
            raise RefusedError(given, worker, "the number of workers is unknown",
                               "Give --of N, the Job's completions")  # fmt: skip
    if worker is None and (worker := _number("SLURM_ARRAY_TASK_ID")) is not None:
        given = "SLURM_ARRAY_TASK_ID"
        if of is None:
            return _array_share(worker)
    worker, of = worker or 0, 1 if of is None else of
    if of < 1:
        raise RefusedError("--of", of, "no worker", "Give the number of workers, 1 or more")
    if not 0 <= worker < of:
        problem = f"not one of the workers 0 to {of - 1} (--of {of})"
        remedy = "Give --worker I, from 0, and --of N, the number of workers"
        raise RefusedError(given, worker, problem, remedy)
    return worker, of


def _array_share(task: int) -> tuple[int, int]:
    """Share of a task of a Slurm array, whose numbers have equal distances.

    Finished groups are skipped, so any such array continues what another one left.
    """
    count = _number("SLURM_ARRAY_TASK_COUNT")
    if count is None:
        problem = "SLURM_ARRAY_TASK_COUNT is not set"
        raise RefusedError("SLURM_ARRAY_TASK_ID", task, problem, "Give --of N")
    first = _number("SLURM_ARRAY_TASK_MIN") or 0
    last = _number("SLURM_ARRAY_TASK_MAX")
    last = first + count - 1 if last is None else last
    step = max((last - first) // max(count - 1, 1), 1)
    worker, rest = divmod(task - first, step)
    if rest or not 0 <= worker < count or first + step * (count - 1) != last:
        raise RefusedError(
            "SLURM_ARRAY_TASK_ID", task,
            f"the array's {count} tasks from {first} to {last} are not at equal distances",
            "Submit a whole array (sbatch --array=0-7): it skips finished groups. Or, to repeat "
            "tasks of an earlier array of N that began with 0, add --of N",
            count=count,
        )  # fmt: skip
    return worker, count


def _number(variable: str) -> int | None:
    """The value of a scheduler's variable, None where it is not set."""
    value = os.environ.get(variable)
    if value is not None and not value.isdecimal():
        raise RefusedError(variable, repr(value), "not a number", "Give --worker I --of N")
    return None if value is None else int(value)


def real_number(text: str) -> float:
    """Read a finite number above 0 from a command line."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text}: should be a number above 0")


def whole_number(text: str) -> int:
    """Read a whole number above 0 from a command line; 80e9 counts as one."""
    if not real_number(text).is_integer():
        raise argparse.ArgumentTypeError(f"{text}: should be a whole number")
    return int(float(text))
