"""One writer of a run whose file system has no locks, as NFS without lockd: a lease on the disk."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quickdraw_dist.base.errors import BusyError, ChangedError
from quickdraw_dist.run import lease, versions
from quickdraw_dist.run.folder import RunFolder

HOLD = """
import fcntl, os, sys
from quickdraw_dist.base.errors import TrainingError
from quickdraw_dist.run import lease
from quickdraw_dist.run.folder import RunFolder
def flock(*_):
    raise OSError(int(sys.argv[2]), os.strerror(int(sys.argv[2])))
fcntl.flock = flock
lease.RENEW_SECONDS, lease.EXPIRY_SECONDS = 0.02, 1.0
if sys.argv[3:]:
    lease._pid_namespace = lambda: "of process " + str(os.getpid())
try:
    folder = RunFolder(sys.argv[1])
except TrainingError as error:
    sys.exit(f"busy: {error}")
print("held", flush=True)
sys.stdin.read()
try:
    folder.log({"step": 1})
except TrainingError as error:
    print("lost", error)
folder.close()
"""


def hold(run: Path, number: int = errno.ENOLCK, *more: str) -> subprocess.Popen[str]:
    """Another process that wants the run's folder and holds it until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run), str(number), *more],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def holders() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes that hold a folder, as other hosts would; they are killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(run: Path, *more: object) -> subprocess.Popen[str]:
        started.append(hold(run, *more))  # type: ignore[arg-type]
        assert started[-1].stdout is not None and started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def _without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`flock` fails as on NFS without lockd; a lease expires after a second."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1.0)


Holders = Callable[..., subprocess.Popen[str]]


@pytest.mark.parametrize(
    "number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.EINVAL]
)
def test_locks_that_fail(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Said once, and the run is written; the next process waits for nothing."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1e9)
    for step in (1, 2):
        folder = RunFolder(str(tmp_path / "run"))
        folder.log({"step": step})
        folder.check()
        folder.close()
        said = capsys.readouterr().err
        assert said.count(f"its file system has no locks ({os.strerror(number)})") == 1
        assert str(tmp_path / "run") in said
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert text == '{"step": 1}\n{"step": 2}\n'
    assert not (tmp_path / "run" / ".lease").exists()


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_lock_server_that_is_away_is_no_missing_lock(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may hold the lock that cannot be asked for: exit code 1, and no lease."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match=os.strerror(number)):
        RunFolder(str(tmp_path / "run"))
    assert not (tmp_path / "run" / ".lease").exists()


def test_locks_a_second_writer(holders: Holders, tmp_path: Path) -> None:
    """Refused as soon as the holder renews, which it keeps doing."""
    holder = holders(tmp_path, errno.EACCES)
    for _ in range(2):
        with pytest.raises(BusyError, match=f"process {holder.pid} on "):
            RunFolder(str(tmp_path))
    assert holder.communicate("")[0] == "" and holder.returncode == 0
    RunFolder(str(tmp_path)).close()


def test_locks_only_some_hosts_have(
    holders: Holders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that can lock the folder heeds the lease of one that cannot."""
    holder = holders(tmp_path)
    monkeypatch.undo()
    with pytest.raises(BusyError, match=f"process {holder.pid} on "):
        RunFolder(str(tmp_path))
    holder.kill()
    holder.wait()
    RunFolder(str(tmp_path)).close()


def test_locks_of_a_dead_node(
    holders: Holders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody removes its files: its lease expires, and one of several that wait gets the run."""
    holder = holders(tmp_path, errno.ENOLCK, "elsewhere")
    holder.kill()
    holder.wait()
    waiting = [hold(tmp_path, errno.ENOLCK, "elsewhere") for _ in range(4)]
    for process in waiting:
        assert process.stdout is not None and process.stdin is not None
    said = [process.stdout.readline() for process in waiting if process.stdout is not None]
    assert sorted(said) == ["", "", "", "held\n"]
    errors = [process.communicate("")[1] for process in waiting]
    assert sum("busy: " in error for error in errors) == 3
    assert all("Waiting up to 1 s for a renewal" in error for error in errors)
    assert [path.name for path in tmp_path.glob(".lease*")] == []


def test_locks_of_a_node_that_stalled(holders: Holders, tmp_path: Path) -> None:
    """Taken over meanwhile, it writes nothing more and leaves the new holder's lease alone."""
    holder = holders(tmp_path, errno.ENOLCK, "elsewhere")
    holder.send_signal(signal.SIGSTOP)
    folder = RunFolder(str(tmp_path))
    holder.send_signal(signal.SIGCONT)
    time.sleep(0.2)
    out, _ = holder.communicate("")
    assert f"lost --output {tmp_path}: process {os.getpid()} on " in out
    assert not (tmp_path / "metrics.jsonl").exists()
    folder.check()
    folder.close()


# -- a file with a generation ----------------------------------------------------------------------


def test_a_file_with_a_generation(tmp_path: Path) -> None:
    """Created once, replaced and removed only by whoever has seen the last generation."""
    url = str(tmp_path / "file")
    assert versions.read(url) == (b"", 0)
    assert versions.publish(url, b"one", 0) == 1
    assert versions.publish(url, b"one", 1) == 2
    for generation in (0, 1, 3):
        with pytest.raises(ChangedError):
            versions.publish(url, b"two", generation)
        with pytest.raises(ChangedError):
            versions.remove(url, generation)
    assert versions.read(url) == (b"one", 2)
    taken = versions.publish(url, b"two", 2)
    assert versions.read(url) == (b"two", taken)
    for generation in (2, 3):  # the first writer's next ones
        with pytest.raises(ChangedError):
            versions.publish(url, b"one", generation)
    versions.remove(url, taken)
    with pytest.raises(ChangedError):
        versions.publish(url, b"two", taken)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_program(tmp_path: Path) -> None:
    """Or of a process that was killed while it created the file: replaced like any other."""
    url = str(tmp_path / "file")
    Path(url).write_bytes(b"")
    assert versions.read(url) == (b"", 1)
    taken = versions.publish(url, b"one", 1)
    assert versions.read(url) == (b"one", taken)


def test_a_file_whose_next_writer_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it left keeps others from writing for a minute, not for ever."""
    url = str(tmp_path / "file")
    versions.publish(url, b"one", 0)
    monkeypatch.setattr(Path, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        versions.publish(url, b"two", 1)
    monkeypatch.undo()
    for _ in range(2):
        with pytest.raises(ChangedError):
            versions.publish(url, b"three", 1)
    monkeypatch.setattr(versions, "_CLAIM_SECONDS", -1.0)
    with pytest.raises(ChangedError):
        versions.publish(url, b"three", 1)
    assert versions.read(url) == (b"one", 1)
    taken = versions.publish(url, b"three", 1)
    assert versions.read(url) == (b"three", taken)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
