"""How a process ends, and who is told: one exit code and one message for every error.

0 done, 2 refused (do not retry), 85 stopped by a signal and saved (requeue), 130 interrupted,
143 ended by TERM (jobs), otherwise 1. Only an entry point leaves; everything below it raises or
returns. Three threads leave in its place, because the main thread may be inside C++ for minutes:
the signal watcher before the first step, its timer, and the watchdog.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn

REFUSED = 2
"""What was asked for cannot work: do not retry."""

SAVED = 85
"""Stopped by a signal, and saved: requeue."""

EXIT_FILE = "QUICKDRAW_EXIT_FILE"
"""The variable that names the file in which ranks tell the launcher how they end, because torchrun
returns 1 for any exit code but 0: one line per rank, its exit code and its node's ranks."""

_FIRST_RANK_GRACE_SECONDS = 5.0
"""How long a rank waits for local rank 0 to print the same error."""

_leaving = threading.Lock()


def leave(code: int) -> NoReturn:
    """End this process at once, without tearing down the process group and the interpreter.

    Files are closed and locks released with the process. Teardown was seen to abort a rank now and
    then ('terminate called without an active exception'), and would wait for fetches under way.
    """
    if threading.current_thread() is threading.main_thread():
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
    _leaving.acquire()  # never released: two threads may want to, and the first one's code counts
    with contextlib.suppress(KeyError, OSError), Path(os.environ[EXIT_FILE]).open("a") as file:
        file.write(f"{code} {os.environ.get('LOCAL_WORLD_SIZE', '1')}\n")
    os._exit(code)


def report(error: BaseException) -> int:
    """Print what a user needs to know about an error, and return the exit code.

    An error that all ranks of a node meet is printed once per node. Errors that one rank alone can
    see (damaged bytes, a store or a disk that fails) are always printed. What nobody expects is
    printed with its traceback.
    """
    from concurrent.futures.process import BrokenProcessPool

    from quickdraw_dist.base.errors import CorruptError, RefusedError, StorageError, TrainingError

    match error:
        case SystemExit():  # --help, an unknown argument
            if error.code is None or isinstance(error.code, int):
                return error.code or 0
            return _tell(error.code, 1)
        case RefusedError():
            return _tell(error, REFUSED, rank_specific=isinstance(error, CorruptError))
        case TrainingError():
            return _tell(error, 1)
        case ModuleNotFoundError():
            install = "Run: make install, then . .venv/bin/activate"
            return _tell(f"{error.name} is not installed. {install}", 1)
        case StorageError() | OSError():
            return _tell(error, 1, rank_specific=True)
        case BrokenProcessPool():
            return _tell("a worker process died, perhaps out of memory. Use fewer --processes", 1)
        case KeyboardInterrupt():
            return _tell("interrupted. The same command continues from here", 130)
    traceback.print_exception(error)
    return 1


def _tell(problem: object, code: int, rank_specific: bool = False) -> int:
    """Print an error once per node: local rank 0 prints it, the others only if rank 0 did not.

    torchrun's 40 lines about an exit code quote the rank's error file, so the error goes there too.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # of this rank: FOLDER/LOCAL_RANK/error.json
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if rank_specific or first or not file or not _first_rank_told(Path(file)):
        print(f"error: {problem}", file=sys.stderr, flush=True)
    if file:
        told = {"message": f"error: {problem}", "timestamp": int(time.time())}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps(told), encoding="utf-8")
    return code


def _first_rank_told(own: Path) -> bool:
    """Whether local rank 0 has printed its error. Waits for it: torchrun ends the ranks that are
    left as soon as one has ended."""
    until = time.monotonic() + _FIRST_RANK_GRACE_SECONDS
    first = own.parent.parent / "0" / own.name
    while not (told := first.exists()) and time.monotonic() < until:
        time.sleep(0.01)
    return told
