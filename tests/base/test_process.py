"""This process: the CPUs it may use, its parent, the locks it holds, its garbage collector."""

from __future__ import annotations

import errno
import fcntl
import gc
import math
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from quickdraw_dist.base import process
from quickdraw_dist.base.process import (
    PARENT_VARIABLE,
    FileLock,
    UnlockableError,
    processors,
    quota,
)

# -- CPUs ------------------------------------------------------------------------------------------


def test_quota() -> None:
    assert quota("max 100000\n") == math.inf
    assert quota("max") == math.inf
    assert quota("400000 100000\n") == 4
    assert quota("50000 100000\n") == 0.5
    assert quota("250000 50000\n") == 5


@pytest.mark.parametrize(
    ("limit", "expected"), [("max 100000", 8), ("350000 100000", 3), ("20000 100000", 1)]
)
def test_a_container_with_a_limit(
    limit: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(process, "CGROUPS", tmp_path)
    (tmp_path / "cpu.max").write_text(limit)  # of our own group or of one that contains it
    assert processors() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="no CPU affinity here")
def test_bound_to_one_cpu() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}})\n"
    code += "from quickdraw_dist.base.process import processors; print(processors())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


# -- the parent ------------------------------------------------------------------------------------

DIE = "import time; from quickdraw_dist.base.process import die_with_parent; die_with_parent(); "


def test_dies_with_its_parent() -> None:
    """A worker that outlives its torchrun keeps the run's lock and a GPU."""
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    outlive = DIE + "print('ready', flush=True); time.sleep(60); print('still here')"
    parent = subprocess.Popen(
        [sys.executable, "-c", start, outlive], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    # The child holds the other end of this pipe: reading ends when the child is dead.
    assert parent.communicate()[0] == ""


def test_dies_when_its_parent_was_dead_before_the_call() -> None:
    """Killed while the worker started: the worker has another parent by now."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for parent, code in ((dead.pid, 1), (os.getpid(), 0)):
        environment = os.environ | {PARENT_VARIABLE: str(parent)}
        assert subprocess.run([sys.executable, "-c", DIE], env=environment).returncode == code


def test_shard_workers_die_with_their_killed_parent(tmp_path: Path) -> None:
    """The workers hold the parent's output open: it ends only when all of them are dead."""
    source = ["--source", "synthetic:?classes=4&per_class=50000", "--dest", str(tmp_path)]
    sizes = ["--processes", "2", "--shard.drawings_per_shard", "256", "--shard.block", "256"]
    parent = subprocess.Popen(
        [sys.executable, "-m", "jobs.shard", *source, *sizes],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    parts = tmp_path / "parts"
    while not (parts.is_dir() and list(parts.glob("*.json"))):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.communicate()
    built = len(list(parts.glob("*.json")))
    assert 0 < built < 200_000 / (8 * 256)
    assert not (tmp_path / "manifest.json").exists()


# -- the garbage collector -------------------------------------------------------------------------


class Cycle:
    """Refers to itself: only the collector frees it."""

    def __init__(self) -> None:
        self.self = self


def test_garbage_is_collected_on_request_only() -> None:
    with process.manual_garbage_collection():
        cycle = weakref.ref(Cycle())
        assert len([[] for _ in range(100_000)]) == 100_000  # many times the usual threshold
        assert cycle() is not None
        process.collect_garbage()
        assert cycle() is None


def test_automatic_collection_is_restored() -> None:
    """Also after an error: a program that uses the trainer as a library keeps its collector."""
    frozen = gc.get_freeze_count()
    with pytest.raises(ValueError), process.manual_garbage_collection():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
    assert gc.get_freeze_count() <= frozen


# -- locks -----------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from quickdraw_dist.base.process import FileLock
with FileLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    """Another process cannot have it meanwhile, and has it at once after a SIGKILL."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        lock = FileLock(tmp_path / "lock")
        assert not lock.acquire(0.1)
        holder.kill()
        holder.wait()
        assert lock.acquire(0)
    assert not FileLock(tmp_path / "lock").acquire(0)
    lock.release()
    lock.release()
    assert FileLock(tmp_path / "lock").acquire(0)


def test_a_lock_of_a_file_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file removed between its opening and its lock guards nothing: it is created again."""
    path, flock = tmp_path / "lock", fcntl.flock

    def remove_first(handle: int, how: int) -> None:
        if os.fstat(handle).st_nlink and not removed:
            removed.append(path.unlink())
        flock(handle, how)

    removed: list[None] = []
    monkeypatch.setattr(fcntl, "flock", remove_first)
    with FileLock(path):
        assert removed and path.exists()


def test_locks_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told apart from a file that cannot be opened; no handle is left open."""

    def flock(*_: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(fcntl, "flock", flock)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(UnlockableError) as failed:
        FileLock(tmp_path / "lock").acquire()
    assert (failed.value.errno, failed.value.filename) == (errno.EACCES, str(tmp_path / "lock"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with pytest.raises(NotADirectoryError) as failed:
        FileLock(tmp_path / "lock" / "below").acquire()
    assert not isinstance(failed.value, UnlockableError)
