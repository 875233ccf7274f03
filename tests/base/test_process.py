"""This process: its CPUs, parent, locks and garbage collector, and what it prints."""

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
from collections.abc import Callable
from pathlib import Path

import pytest

from quickdraw_dist.base.process import cpus
from quickdraw_dist.base.process.cpus import processors, quota, share_processors
from quickdraw_dist.base.process.garbage import collect_garbage, manual_garbage_collection
from quickdraw_dist.base.process.lock import FileLock, UnlockableError
from quickdraw_dist.base.process.parent import PARENT_VARIABLE
from tests.support.processes.holder import holding

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
    monkeypatch.setattr(cpus, "CGROUPS", tmp_path)
    (tmp_path / "cpu.max").write_text(limit)  # of our own group or of one that contains it
    assert processors() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="no CPU affinity here")
def test_bound_to_one_cpu() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}})\n"
    code += "from quickdraw_dist.base.process.cpus import processors; print(processors())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_threads_that_wait_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the user has decided."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    share_processors()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    for name in names:
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        monkeypatch.setenv(name, "ACTIVE")
        share_processors()
        assert os.environ.get("OMP_WAIT_POLICY") == ("ACTIVE" if name == names[0] else None)
        monkeypatch.delenv(name)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_train_decides_before_openmp_starts() -> None:
    """libgomp reads the variable when torch is imported."""
    code = "import sys; import quickdraw_dist.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -- the parent ------------------------------------------------------------------------------------

DIE = "import time; from quickdraw_dist.base.process import parent; parent.die_with_parent(); "


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


# -- lost output -----------------------------------------------------------------------------------

PRINT = """
import os, sys, time
from quickdraw_dist.base.process.output import print_unbuffered, survive_lost_output
survive_lost_output()
for _ in range(3):
    print("words é", flush=True)
    print("more", file=sys.stderr)
    print_unbuffered("unbuffered")
    time.sleep(0.01)
os.system("echo child")
print("pending")
"""


def lost_pipe() -> int:
    """A pipe whose reader has ended: `train | head -2`."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def lost_terminal() -> int:
    """A terminal whose window was closed."""
    ours, theirs = os.openpty()
    os.close(ours)
    return theirs


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.skipif(sys.platform != "linux", reason="no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("lose", "reason"),
    [
        (lost_pipe, "Broken pipe"),
        (lost_terminal, "Input/output error"),
        (full_disk, "No space left on device"),
    ],
)
def test_lost_output_costs_its_words_only(
    lose: Callable[[], int], reason: str, unbuffered: str
) -> None:
    """Either stream, or both; the other one says so once. Python exits with 120 where it cannot
    flush a stream at its end."""
    for lost in (["stdout"], ["stderr"], ["stdout", "stderr"]):
        descriptor = lose()
        streams: dict[str, int] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        done = subprocess.run(
            [sys.executable, "-c", PRINT],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            **(streams | dict.fromkeys(lost, descriptor)),
            text=True,
        )
        os.close(descriptor)
        assert done.returncode == 0
        if lost == ["stdout"]:
            said = f"standard output is lost ({reason}): the command continues without it"
            assert done.stderr.count(said) == 1 and done.stderr.count("more") == 3
        elif lost == ["stderr"]:
            assert done.stdout.count(f"standard error is lost ({reason})") == 1
            assert done.stdout.count("words é") == 3 and done.stdout.endswith("child\npending\n")


def test_output_that_was_closed_from_the_start(tmp_path: Path) -> None:
    """`train >&- 2>&-`: the next file that is opened must not get what is printed."""
    file = tmp_path / "file"
    code = f"{PRINT}\nfile = open({str(file)!r}, 'w'); print_unbuffered('x'); sys.stdout.isatty()"
    command = ["sh", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code]
    assert subprocess.run(command).returncode == 0
    assert file.read_text() == ""


def test_output_that_nobody_reads_does_not_block_the_end() -> None:
    """A pager that waits, a terminal stopped with Ctrl-S: the watchdog still ends the run."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while os.write(writer, bytes(4096)):
            pass
    os.set_blocking(writer, True)
    code = "from quickdraw_dist.base.process import output; output._PRINT_SECONDS = 0.05; "
    code += "output.print_unbuffered('stalled')"
    assert subprocess.run([sys.executable, "-c", code], stderr=writer, timeout=60).returncode == 0
    os.close(reader)
    os.close(writer)


def test_non_blocking_output_waits_for_its_reader() -> None:
    """Another program on the same terminal (ssh, node) may leave it so; Python's own stream
    raises BlockingIOError."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    code = "from quickdraw_dist.base.process import output; output.survive_lost_output(); "
    code += "print('x' * 300_000)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=writer)
    os.close(writer)
    with os.fdopen(reader) as output:
        assert len(output.read()) == 300_001
    assert process.wait() == 0


# -- the garbage collector -------------------------------------------------------------------------


class Cycle:
    """Refers to itself: only the collector frees it."""

    def __init__(self) -> None:
        self.self = self


def test_garbage_is_collected_on_request_only() -> None:
    with manual_garbage_collection():
        cycle = weakref.ref(Cycle())
        assert len([[] for _ in range(100_000)]) == 100_000  # many times the usual threshold
        assert cycle() is not None
        collect_garbage()
        assert cycle() is None


def test_automatic_collection_is_restored() -> None:
    """Also after an error: a program that uses the trainer as a library keeps its collector."""
    frozen = gc.get_freeze_count()
    with pytest.raises(ValueError), manual_garbage_collection():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
    assert gc.get_freeze_count() <= frozen


# -- locks -----------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from quickdraw_dist.base.process.lock import FileLock
with FileLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    """Another process cannot have it meanwhile, and has it at once after a SIGKILL."""
    with holding(HOLD, str(tmp_path / "lock")) as holder:
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
