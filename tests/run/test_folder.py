"""A run's folder: one writer, whom the refusal of a second one names, and a log that resumes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import BusyError, RefusedError
from quickdraw_dist.distributed import exits
from quickdraw_dist.run import folder as run_folder
from quickdraw_dist.run import lease
from quickdraw_dist.run.folder import RunFolder
from tests.support.gcs.local import Store
from tests.support.processes.holder import holding
from tests.support.processes.ranks import run_ranks

ROOT = Path(__file__).parents[2]

HOLD = """
import sys
from quickdraw_dist.run.folder import RunFolder
folder = RunFolder(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_LOCK_TIMEOUT_SECONDS", 0)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds tmp_path / "run" until its input ends."""
    with holding(HOLD, str(tmp_path / "run")) as process:
        yield process


def test_second_writer_is_told_who_holds_it(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """Two jobs that write one run ruin it; the second is refused and told which process, on which
    host, to look for. Another run in the same place is free."""
    with pytest.raises(BusyError) as refused:
        RunFolder(str(tmp_path / "run"))
    assert str(refused.value) == (
        f"--output {tmp_path / 'run'}: process {holder.pid} on {socket.gethostname()} writes this "
        "run now. Wait for it, or use another --output"
    )
    assert holder.poll() is None
    RunFolder(str(tmp_path / "other")).close()


def test_killed_writer_leaves_no_lock(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """After SIGKILL or a power cut the same command resumes without anyone removing files."""
    holder.kill()
    holder.wait()
    folder = RunFolder(str(tmp_path / "run"))
    with pytest.raises(BusyError, match=f"process {os.getpid()} on "):
        RunFolder(str(tmp_path / "run"))
    folder.close()


def _second_writer(_rank: int, _: int, url: str) -> tuple[str, int]:
    try:
        with run_folder.locked(url):
            return "", 0
    except BusyError as error:
        return str(error), exits.report(error)


def test_a_second_writer_ends_with_1_on_every_rank(
    processes: ForkServerContext, holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    """Another holder is trouble of the moment: 2 would end a Kubernetes Job for good."""
    told = run_ranks(processes, 2, tmp_path / "ranks", _second_writer, str(tmp_path / "run"))
    assert [code for _, code in told] == [1, 1]
    assert all(f"process {holder.pid} on " in text for text, _ in told)


def test_closed_folder_is_free(tmp_path: Path) -> None:
    """close releases the lock, and may be repeated."""
    first = RunFolder(str(tmp_path))
    first.close()
    first.close()
    RunFolder(str(tmp_path)).close()


def test_folder_that_cannot_be(tmp_path: Path) -> None:
    """An --output that is a file, or below one, is refused."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RefusedError) as refused:
            RunFolder(str(path))
        assert (refused.value.subject, refused.value.value) == ("--output", str(path))


def _rank(rank: int, _: int, disks: list[str]) -> str:
    Path(disks[rank]).mkdir(exist_ok=True)
    os.chdir(disks[rank])
    try:
        with run_folder.locked("run") as folder:
            return f"{rank}: {folder is not None}"
    except RefusedError as error:
        return f"{rank}: {error}"


@pytest.mark.parametrize("shared", [True, False])
def test_nodes_with_a_disk_each(shared: bool, processes: ForkServerContext, tmp_path: Path) -> None:
    """All ranks must see the folder that rank 0 writes: checked by every rank at the start, not
    found out when a restart has no checkpoint. (Two working folders stand for two disks.)"""
    disks = [str(tmp_path / ("disk" if shared else f"disk {rank}")) for rank in range(2)]
    lines = run_ranks(processes, 2, tmp_path, _rank, disks)
    if shared:
        assert lines == ["0: True", "1: False"]
    else:
        for line in lines:
            assert "--output run: on " in line and "not the folder of the first rank" in line


# -- the log ---------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(str(tmp_path))
    yield folder
    folder.close()


def steps(run: RunFolder) -> list[int]:
    """Steps of the lines in the log; each must be whole JSON."""
    text = Path(run.url, "metrics.jsonl").read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line)["step"] for line in text.splitlines()]


def again(run: RunFolder) -> RunFolder:
    """The same folder in the next process."""
    run.close()
    return RunFolder(run.url)


def test_a_line_is_written_at_once(run: RunFolder) -> None:
    """People follow a run with tail -f, and a crash must lose no lines."""
    for step in (20, 40):
        run.log({"step": step, "kind": "train"})
        assert steps(run)[-1] == step


def test_resume_cuts_records_that_will_be_repeated(run: RunFolder) -> None:
    """A run resumes from a step before its last lines: without the cut they would appear twice,
    and curves would run backwards."""
    for step in (20, 40, 60, 80):
        run.log({"step": step})
    resumed = again(run)
    resumed.resume_log(40)
    assert steps(resumed) == [20, 40]
    resumed.log({"step": 60})
    assert steps(resumed) == [20, 40, 60]


def test_resume_in_a_new_process_drops_a_torn_line(tmp_path: Path) -> None:
    """A process that was killed while writing leaves half a line; the next one must not be
    appended to it."""
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 20, "loss": 1.5}\n{"step": 40, "loss": 1.25}\n{"step": 60, "lo')
    run = RunFolder(str(tmp_path))
    run.resume_log(60)
    run.log({"step": 60})
    assert steps(run) == [20, 40, 60]
    assert log.read_text().splitlines()[0] == '{"step": 20, "loss": 1.5}'  # the same bytes
    run.close()


def test_resume_without_a_log(run: RunFolder) -> None:
    """A run whose log was removed starts a new one."""
    run.resume_log(40)
    run.log({"step": 60})
    assert steps(run) == [60]


def test_resume_before_the_first_line(run: RunFolder) -> None:
    """All lines are of later steps: all are removed."""
    run.log({"step": 20})
    resumed = again(run)
    resumed.resume_log(10)
    resumed.log({"step": 20})
    assert steps(resumed) == [20]


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """An existing folder in which no lock can be made, as another user's, is refused, too. (A
    folder named like the lock stands for it: it stops root, too.)"""
    (tmp_path / ".lock").mkdir()
    with pytest.raises(RefusedError, match="Use a writable folder"):
        RunFolder(str(tmp_path))


FULL = """
import resource, sys
from pathlib import Path
from quickdraw_dist.base.telemetry import metrics
from quickdraw_dist.run.folder import RunFolder
folder = RunFolder(sys.argv[1])
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
for step in range(100):
    if step == 10:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))  # within a line
    if step == 50:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if step in (49, 99):
        print(Path(sys.argv[1], "metrics.jsonl").read_text().count("}"))
    folder.log({"step": step})
try:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    folder.log({"step": 100})
    folder.flush()
except OSError as error:
    print("flush:", error.strerror)
print(metrics.LOG_FAILURES._value.get())
"""


def test_a_disk_that_is_full_for_a_while(tmp_path: Path) -> None:
    """Training continues without the log; each period is reported once, each failure counted, and
    every line is written, once, as soon as there is room. (A limit on the size of files stands for
    the disk: the system refuses the write in the same way.)"""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    during, after, flushed, failures = done.stdout.splitlines()
    assert int(during) == 16 and int(after) == 99
    assert flushed == "flush: File too large"  # a checkpoint is never ahead of its log
    assert float(failures) == (50 - 16) + 1  # 16 whole lines are fewer than 200 bytes
    reported = done.stderr.splitlines()
    assert len(reported) == 2
    assert reported[0].startswith(f"{tmp_path}/metrics.jsonl: [Errno 27]")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(100))


def test_the_log_in_a_store(store: Store) -> None:
    """Written by flush and close, and resumed by the next writer."""
    run = RunFolder("gs://bucket/run")
    run.log({"step": 1})
    run.check()
    run.flush()
    run.log({"step": 2})
    run.close()
    second = RunFolder("gs://bucket/run")
    assert second.resume_log(1) == [{"step": 1}]
    second.log({"step": 3})
    second.close()
    assert storage.read("gs://bucket/run/metrics.jsonl") == b'{"step": 1}\n{"step": 3}\n'
    assert storage.folders("gs://bucket/run") == []


@pytest.fixture(params=["local", "store"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path, store: Store) -> str:
    """A run's address, on a disk and in a store."""
    return "gs://bucket/run" if request.param == "store" else str(tmp_path / "run")


@pytest.mark.parametrize("ends", ["close", "flush", "failed read"])
def test_data_loss_what_was_not_read_stays(
    anywhere: str, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that ends before the log is resumed (a finished run, a refusal, an error in warm-up,
    a store that fails) leaves it as it is."""
    log = storage.join(anywhere, "metrics.jsonl")
    written = b'{"step": 1}\n{"step": 2}\n{"st'
    storage.publish(log, written)
    run = RunFolder(anywhere)
    if ends == "flush":
        run.flush()
    if ends == "failed read":
        monkeypatch.setattr(run_folder, "read_log", lambda _: [][0])
        with pytest.raises(IndexError):
            run.resume_log(2)
    run.close()
    assert storage.read(log) == written


def test_data_loss_a_record_without_a_resume(anywhere: str) -> None:
    """It comes after those that are there."""
    for step in (1, 2):
        run = RunFolder(anywhere)
        run.log({"step": step})
        run.close()
    log = storage.join(anywhere, "metrics.jsonl")
    assert storage.read(log) == b'{"step": 1}\n{"step": 2}\n'


def test_data_loss_a_line_of_bytes_that_are_no_text(anywhere: str) -> None:
    """A disk that lost power leaves zeros or worse within a file: the other lines are read."""
    log = storage.join(anywhere, "metrics.jsonl")
    storage.publish(log, b'{"step": 1}\n\xff\x00\n{"step": 3}\n')
    assert [record["step"] for _, record in run_folder.read_log(anywhere)] == [1, 3]


def test_the_holder_of_the_lock_notices_a_lease(tmp_path: Path) -> None:
    """A host on which the folder cannot be locked does not see the lock of one on which it can."""
    folder = RunFolder(str(tmp_path / "run"))
    folder.check()
    (tmp_path / "run" / ".lease").touch()
    with pytest.raises(BusyError):
        folder.check()
    (tmp_path / "run" / ".lease").unlink()
    folder.close()
