"""This process: its CPUs, parent, locks, garbage collector, output, and what children inherit."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import io
import math
import os
import pickle
import platform
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import parent_process, reduction
from pathlib import Path
from typing import Any, Self

CGROUPS = Path("/sys/fs/cgroup")
"""Mount point of Linux's control groups, version 2, which limit a container's or a job's CPUs."""

PARENT_VARIABLE = "QUICKDRAW_PARENT_PID"
"""Environment variable in which a parent tells its children its process id, so that they notice
even if it was killed before they called `die_with_parent`."""

_PRINT_SECONDS = 2.0
"""How long `print_unbuffered` waits for a reader that reads nothing."""

_STREAMS = {1: ("stdout", "standard output"), 2: ("stderr", "standard error")}

_PARENT_POLL_SECONDS = 0.5
"""Interval at which the parent is checked where the kernel does not report its death."""


def processors() -> int:
    """Return how many CPUs this process may use, at least 1: the smaller of its scheduler
    affinity and its control group's quota, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, int(min([count, *_quotas(CGROUPS)])))


def _quotas(root: Path) -> list[float]:
    """CPU quotas of this process's control group and of the groups that contain it."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").partition("0::/")[2].strip()
    except OSError:
        return []  # not Linux
    found = []
    for folder in (root / own, *(root / own).parents):
        try:
            found.append(quota((folder / "cpu.max").read_text(encoding="utf-8")))
        except OSError:
            continue
    return found


def quota(cpu_max: str) -> float:
    """Return the CPUs that the contents of a `cpu.max` file allow ("QUOTA PERIOD" in
    microseconds, or "max PERIOD": infinity); pure."""
    used, _, period = cpu_max.strip().partition(" ")
    return float("inf") if used == "max" else int(used) / int(period or 100_000)


def share_processors() -> None:
    """Have OpenMP's threads sleep where they wait, unless the environment says otherwise
    (OMP_WAIT_POLICY, GOMP_SPINCOUNT, KMP_BLOCKTIME). Call it before torch is imported.

    By default they spin, and a step waits until the thread that another program has displaced is
    run again, while the others burn the time.
    """
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


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


_LOCK_POLL_SECONDS = 0.05
"""Interval at which a lock that another process holds is tried again."""


class UnlockableError(OSError):
    """A file on a file system without locks, such as NFS without lockd, some CIFS and FUSE."""


class FileLock:
    """An exclusive lock of a file, which the kernel releases when the process dies. Threads of one
    process need an object each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    def acquire(self, timeout_seconds: float = math.inf) -> bool:
        """Create the file if need be and lock it; return whether that worked in time.

        Raises:
            UnlockableError: the file can be opened, but not locked.
            OSError: it cannot be opened.
        """
        until = time.monotonic() + timeout_seconds
        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            if _lock(handle, str(self._path)):
                self._handle = handle
                return True
            os.close(handle)
            if time.monotonic() >= until:
                return False
            time.sleep(_LOCK_POLL_SECONDS)

    def release(self) -> None:
        """Release the lock, if it is held; the file stays."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _lock(handle: int, path: str) -> bool:
    """Lock an open file; return False if another process holds it, or the file was removed."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(handle).st_nlink > 0
    except BlockingIOError:
        return False
    except OSError as error:
        os.close(handle)
        raise UnlockableError(error.errno, error.strerror, path) from None


@contextlib.contextmanager
def manual_garbage_collection() -> Iterator[None]:
    """Turn automatic garbage collection off in the body, which calls `collect_garbage` itself.

    An automatic collection in a training step delays one rank, at another step each rank, and all
    other ranks wait for it.
    """
    gc.collect()
    gc.freeze()  # later collections skip what exists now
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def collect_garbage() -> None:
    """Free the reference cycles of the last steps: young generations only, about a millisecond."""
    gc.collect(1)


def survive_lost_output() -> None:
    """Make a standard stream that can no longer be written to (a closed pipe or terminal, a full
    disk) cost what is printed to it, never the run. Call it first in a process.

    The loss is reported once, on the other stream. A stream that was closed from the start drops
    what is printed; one that has no file descriptor of its own is left as it is.
    """
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= max(_STREAMS):
        pass  # else the next file that is opened would be taken for a standard stream
    os.close(nowhere)
    for descriptor, (name, _) in _STREAMS.items():
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False)))
        stream: Any = getattr(sys, name)
        with contextlib.suppress(AttributeError, OSError):  # without a descriptor
            if stream.fileno() == descriptor:
                stream.flush()
                raw: Any = _Output(descriptor, "w", closefd=False)
                setattr(sys, name, io.TextIOWrapper(
                    raw if stream.write_through else io.BufferedWriter(raw),  # python -u
                    stream.encoding, stream.errors, "\n", stream.line_buffering,
                    stream.write_through,
                ))  # fmt: skip


class _Output(io.FileIO):
    """A standard stream whose writes never fail."""

    _lost = False

    def write(self, data: Any) -> int:
        """Write all of it, waiting for a reader; drop the rest where that is impossible."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                written = super().write(left)
                if written is None:  # a terminal that was set to non-blocking
                    select.select((), (self.fileno(),), ())
                left = left[written or 0 :]
        except OSError as error:
            self._lose(error)
        return size

    def _lose(self, error: OSError) -> None:
        descriptor = self.fileno()
        if not self._lost:
            self._lost = True
            if os.environ.get("LOCAL_RANK", "0") == "0":
                lost = f"{_STREAMS[descriptor][1]} is lost ({error.strerror})"
                print_unbuffered(f"{lost}: the command continues without it", 3 - descriptor)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # a disk may have room again later
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)  # for what is written past Python, and by children
                os.close(nowhere)


def print_unbuffered(line: str, descriptor: int = 2) -> None:
    """Write a line to standard error (or to output: 1) past Python's buffers, whose locks a
    stalled thread may hold. Never fails, and gives up on a reader that reads nothing."""
    data = f"{line}\n".encode()
    with contextlib.suppress(OSError):
        # A stream that is ready takes this many bytes without blocking.
        while data and select.select((), (descriptor,), (), _PRINT_SECONDS)[1]:
            data = data[os.write(descriptor, data[: select.PIPE_BUF]) :]


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
