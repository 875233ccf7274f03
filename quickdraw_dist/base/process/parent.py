"""A process's parent: end with it, and inherit work from it."""

from __future__ import annotations

import ctypes
import os
import pickle
import platform
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import parent_process, reduction
from typing import Any

PARENT_VARIABLE = "QUICKDRAW_PARENT_PID"
"""Environment variable in which a parent tells its children its process id, so that they notice
even if it was killed before they called `die_with_parent`."""


_PARENT_POLL_SECONDS = 0.5
"""Interval at which the parent is checked where the kernel does not report its death."""


def die_with_parent() -> None:
    """Kill this process when its parent dies, however the parent dies; exit with 1 if it is dead
    already. An orphaned worker would keep a run's lock or a GPU, and no scheduler would stop it."""
    parent = os.getppid()
    if platform.system() == "Linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    starter = parent_process()  # of a process of multiprocessing
    orphaned = starter is not None and not starter.is_alive()
    if os.getppid() != parent or orphaned or _is_dead(os.environ.get(PARENT_VARIABLE)):
        os._exit(1)
    if platform.system() == "Linux":
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def _is_dead(pid: str | None) -> bool:
    """Whether no process has this id. (It need not be the parent's: a shell may be in between.)"""
    try:
        os.kill(int(pid or os.getpid()), 0)
    except ProcessLookupError:
        return True
    return False


class Inherited:
    """A value for spawned processes, pickled in a nameless file that they inherit.

    An argument travels through a pipe instead. A pipe holds 64 KB: the parent of a process that
    dies before it reads more than that would wait for ever.
    """

    def __init__(self, value: object) -> None:
        if sys.platform == "linux":  # in memory: a container may have no folder to write to
            self._file = os.fdopen(os.memfd_create("quickdraw-work"), "w+b")
        else:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 open while processes start
        pickle.dump(value, self._file)
        self._file.flush()

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return _load_inherited, (reduction.DupFd(self._file.fileno()),)


def _load_inherited(handle: Any) -> Any:
    """Return the value of an `Inherited`, in a process that was spawned with it."""
    file = handle.detach()
    try:
        # pread: all processes share one position in the file.
        return pickle.loads(os.pread(file, os.fstat(file).st_size, 0))  # noqa: S301 our own
    finally:
        os.close(file)
