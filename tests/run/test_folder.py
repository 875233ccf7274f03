"""A run's folder: one writer, who is named to the second, and a log that resumes cleanly."""

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
from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.run import folder as run_folder
from quickdraw_dist.run import lease
from quickdraw_dist.run.folder import RunFolder
from tests.support.gcs.local import Store
from tests.support.processes.ranks import run_ranks

ROOT = Path(__file__).parents[2]

HOLD = """
import sys
from quickdraw_dist.run import folder as run_folder
from quickdraw_dist.base.errors import RefusedError
run_folder._DYING_SECONDS = 0
try:
    folder = run_folder.RunFolder(sys.argv[1])
except RefusedError as error:
    sys.exit(str(error))
folder.log({"step": 1})
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second writer waits for a dying first one; here it is known to live."""
    monkeypatch.setattr(run_folder, "_DYING_SECONDS", 0)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)


def start(run: Path) -> subprocess.Popen[str]:
    """Another process that wants the run; holds it until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds tmp_path / "run"."""
    with start(tmp_path / "run") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_second_writer_is_told_who_holds_it(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """Two jobs that write one run ruin it; the second is refused and told which process, on which
    machine, to look for. Another run beside it is free."""
    with pytest.raises(RefusedError) as refused:
        RunFolder(str(tmp_path / "run"))
    text = str(refused.value)
    assert f"--output {tmp_path / 'run'}" in text
    assert f"process {holder.pid} on {socket.gethostname()}" in text
    assert holder.poll() is None
    RunFolder(str(tmp_path / "other")).close()


def test_second_process_is_refused(tmp_path: Path) -> None:
    """The other way round: this process holds it, a real second one is refused."""
    first = RunFolder(str(tmp_path))
    with start(tmp_path) as second:
        _, error = second.communicate()
    assert second.returncode == 1
    assert f"process {os.getpid()} on " in error
    assert "Traceback" not in error
    first.close()


def test_killed_writer_leaves_no_lock(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """After SIGKILL or a power cut the same command must go on without anyone removing files."""
    holder.kill()
    holder.wait()
    folder = RunFolder(str(tmp_path / "run"))
    with pytest.raises(RefusedError, match=f"process {os.getpid()} on "):
        RunFolder(str(tmp_path / "run"))
    folder.close()


def test_closed_folder_is_free(tmp_path: Path) -> None:
    """close lets the next one in, and may be repeated."""
    first = RunFolder(str(tmp_path))
    first.close()
    first.close()
    RunFolder(str(tmp_path)).close()


def test_folder_that_cannot_be(tmp_path: Path) -> None:
    """--output that is a file, or below one, is refused with its name."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RefusedError) as refused:
            RunFolder(str(path))
        assert str(refused.value).startswith(f"--output {path}: ")
        assert "writable folder is right" in str(refused.value)


def _rank(rank: int, _: int, disks: list[str]) -> str:
    Path(disks[rank]).mkdir(exist_ok=True)
    os.chdir(disks[rank])
    try:
        with run_folder.held("run") as folder:
            return f"{rank}: {folder is not None}"
    except RefusedError as error:
        return f"{rank}: {error}"


@pytest.mark.parametrize("shared", [True, False])
def test_nodes_with_a_disk_each(shared: bool, processes: ForkServerContext, tmp_path: Path) -> None:
    """All ranks must see the folder that the first one writes: found out at the start, by every
    rank, and not when a restart finds no checkpoint. (Two working folders stand for two disks.)"""
    disks = [str(tmp_path / ("disk" if shared else f"disk {rank}")) for rank in range(2)]
    lines = run_ranks(processes, 2, tmp_path, _rank, disks)
    if shared:
        assert lines == ["0: True", "1: False"]
    else:
        for line in lines:
            assert "--output run: not the folder of the first rank" in line
            assert "one that all nodes share, or gs://, is right" in line


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
    """The same folder in the next process; let go of when the test ends."""
    run.close()
    return RunFolder(run.url)


def test_a_line_is_there_at_once(run: RunFolder) -> None:
    """People follow a run with tail -f, and a crash must not take lines along."""
    for step in (20, 40):
        run.log({"step": step, "kind": "train"})
        assert steps(run)[-1] == step


def test_resume_cuts_what_will_be_written_again(run: RunFolder) -> None:
    """A run resumes from a step before its last lines: without the cut they would be there
    twice, and curves run backwards."""
    for step in (20, 40, 60, 80):
        run.log({"step": step})
    resumed = again(run)
    resumed.resume_log(40)
    assert steps(resumed) == [20, 40]
    resumed.log({"step": 60})
    assert steps(resumed) == [20, 40, 60]


def test_resume_in_a_new_process_drops_a_torn_line(tmp_path: Path) -> None:
    """A process that was killed in the middle of a line leaves half of it; the next line must not
    be glued to that half."""
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 20, "loss": 1.5}\n{"step": 40, "loss": 1.25}\n{"step": 60, "lo')
    run = RunFolder(str(tmp_path))
    run.resume_log(60)
    run.log({"step": 60})
    assert steps(run) == [20, 40, 60]
    assert log.read_text().splitlines()[0] == '{"step": 20, "loss": 1.5}'  # kept as it was
    run.close()


def test_resume_without_a_log(run: RunFolder) -> None:
    """A run whose log was removed goes on and starts a new one."""
    run.resume_log(40)
    run.log({"step": 60})
    assert steps(run) == [60]


def test_resume_before_the_first_line(run: RunFolder) -> None:
    """All lines are of later steps: all of them go."""
    run.log({"step": 20})
    resumed = again(run)
    resumed.resume_log(10)
    resumed.log({"step": 20})
    assert steps(resumed) == [20]


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder that is there but lets no lock be made, as another user's, is refused like one that
    cannot be made. (A folder in the lock's place stands for it: it stops root, too.)"""
    (tmp_path / ".lock").mkdir()
    with pytest.raises(RefusedError, match="writable folder is right"):
        RunFolder(str(tmp_path))


FULL = """
import resource, sys
from pathlib import Path
from quickdraw_dist.base.telemetry import metrics as telemetry
from quickdraw_dist.run.folder import RunFolder
folder = RunFolder(sys.argv[1])
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
for step in range(100):
    if step == 10:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))  # in the midst of a line
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
print(telemetry.LOG_FAILURES._value.get())
"""


def test_a_disk_that_is_full_for_a_while(tmp_path: Path) -> None:
    """Training goes on without the log; it is said once each time, counted, and every line is
    there, once, as soon as there is room. (A limit on the size of files stands for the disk: the
    system refuses the write in the same way.)"""
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
    said = done.stderr.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"{tmp_path}/metrics.jsonl: [Errno 27]")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(100))


def test_a_store_has_one_writer_and_the_whole_log(store: Store) -> None:
    """The same in gs://: the second is refused, the log goes on where it was, and what was said
    last is there when the writer has left."""
    run = RunFolder("gs://bucket/run")
    run.log({"step": 1})
    with pytest.raises(RefusedError, match=f"process {os.getpid()} on .* writes this run now"):
        RunFolder("gs://bucket/run")
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
