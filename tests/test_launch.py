"""The launcher: its exit codes, its restarts, and that no process outlives it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from torch.distributed import run as torchrun

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.distributed import torchrun as agent
from quickdraw_dist.distributed.signals import SIGNALS
from quickdraw_dist.launch import outcome
from tests.support import runs
from tests.support.processes.system import PID_NAMESPACE, has_signal, may_unshare


@pytest.mark.parametrize(
    ("torchrun", "codes", "signalled", "code"),
    [
        (0, [0, 0], False, 0),
        (0, [], False, 0),  # a script that says nothing
        (1, [0, 0], True, 0),  # the signal came when all was done
        (1, [2], False, 2),
        (1, [2, 85], False, 2),  # torchrun's TERM after a refusal
        (2, [], False, 2),  # torchrun's own refusal
        (1, [85, 85], False, 85),
        (1, [85, 85], True, 85),
        (1, [0, 85], True, 85),
        (-15, [], True, 85),  # before there were ranks
        (1, [85], True, 85),  # the other one was ended in its first lines
        (1, [85, 1], True, 85),  # saved; one was slow to leave
        (1, [1, 1], True, 1),  # could not save in time
        (1, [85], False, 1),  # one crashed at the start, and torchrun sent the other TERM
        (1, [85, 1], False, 1),
        (-9, [], True, 1),  # the second INT
        (1, [], False, 1),
        (-9, [], False, 1),
        (1, [0], False, 1),
    ],
)
def test_exit_code(torchrun: int, codes: list[int], signalled: bool, code: int) -> None:
    """With two ranks: 85 only where nothing was lost, 2 only where a retry cannot help."""
    assert outcome(torchrun, codes, 2 if codes else 0, signalled) == code


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--max-restarts=3"], ["--max-restarts 3", "Use --restarts 3"]),
        (["--restarts=2", "--nnodes=4"], ["--restarts 2", "4 nodes", "the scheduler"]),
        (["--restarts=2", "--nnodes=1:4"], ["--restarts 2"]),
        (["--nproc_per_node=abc"], ["torchrun's arguments", "abc"]),
        (["--nnodes=many"], ["torchrun's arguments", "many"]),
    ],
)
def test_options_that_would_lose_work_are_refused(arguments: list[str], parts: list[str]) -> None:
    parser = torchrun.get_args_parser()
    parser.add_argument("--restarts", type=int, default=0)
    parsed = parser.parse_args([*arguments, "script.py"])
    with pytest.raises(RefusedError) as refused:
        agent._check(parsed)
    assert all(part in str(refused.value) for part in parts)


def test_torchrun_waits_longer_than_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank's own message comes before torchrun ends it. An explicit timeout is kept."""
    monkeypatch.setenv("QUICKDRAW_TRAIN__SHUTDOWN_SECONDS", "7.5")
    for given, seconds in (([], 13), (["--shutdown-timeout=3"], 3)):
        parsed = torchrun.parse_args([*given, "-m", "quickdraw_dist.train"])
        parsed.restarts = 0
        agent._check(parsed)
        assert parsed.shutdown_timeout == seconds


def test_help(capfd: pytest.CaptureFixture[str]) -> None:
    """--help explains options, exit codes and signals."""
    done = subprocess.run([*runs.launcher(1), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("--restarts N", "85 stopped by a signal", "INT"))


def test_a_refusal_is_the_last_line(tmp_path: Path) -> None:
    """The 40 lines of torchrun's report do not follow it."""
    none = str(tmp_path / "none")
    process = runs.start(runs.launcher(2), runs.settings(none, tmp_path / "run"))
    said, _ = process.communicate()
    assert process.returncode == 2
    (line,) = said.splitlines()
    assert line.startswith("error: ") and none in line


@pytest.mark.skipif(sys.platform != "linux", reason="no /dev/full here")
def test_lost_output_costs_its_words_only(tmp_path: Path) -> None:
    """Of shard, launcher, torchrun and ranks: the reader ends (`| head -2`), a disk is full."""
    data, output = tmp_path / "shards", tmp_path / "run"
    with Path("/dev/full").open("w") as full:
        source = ["--source", "synthetic:?classes=4&per_class=60", "--dest", str(data)]
        command = [sys.executable, "-m", "jobs.shard", *source, "--shard.block", "32"]
        assert subprocess.run(command, stdout=full, stderr=full).returncode == 0
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [*runs.launcher(2), "-m", "quickdraw_dist.train", *runs.settings(data, output)],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    os.close(writer)
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("standard output is lost (Broken pipe)") == 1
    assert runs.last_meta(output)["epoch"] == 2


# -- with a small program instead of a training ----------------------------------------------------


def launch(tmp_path: Path, program: str, *options: str, ranks: int = 1) -> subprocess.Popen[str]:
    """Start the launcher with a program, which gets the path of a file `mark`."""
    module = ["-m", f"tests.support.processes.programs.{program}", str(tmp_path / "mark")]
    return subprocess.Popen(
        [*runs.launcher(ranks, *options), *module],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(("restarts", "code"), [(1, 0), (0, 1)])
def test_restarts(restarts: int, code: int, tmp_path: Path) -> None:
    """--restarts restarts a crashed run; the log names the rank and the signal that ended it."""
    process = launch(tmp_path, "crash_once", f"--restarts={restarts}", ranks=2)
    said, _ = process.communicate()
    assert process.returncode == code, said
    assert ("crashed; restart 1 of 1" in said) == bool(restarts)
    assert "rank 1 (process " in said and "was ended by SIGKILL" in said


@pytest.mark.parametrize("victim", ["launcher", "torchrun"])
def test_no_rank_outlives_a_killed_launcher(victim: str, tmp_path: Path) -> None:
    """The ranks hold the launcher's output open: it ends only when the last of them is gone."""
    process = launch(tmp_path, "ignore_signals", ranks=2)
    assert process.stdout is not None
    torchrun_pid = int(process.stdout.readline().split()[2])
    assert process.stdout.readline().startswith("ready")
    os.kill(process.pid if victim == "launcher" else torchrun_pid, signal.SIGKILL)
    said, _ = process.communicate()
    assert "still here" not in said
    assert process.returncode == (-signal.SIGKILL if victim == "launcher" else 1)


def test_a_second_interrupt_ends_everything(tmp_path: Path) -> None:
    """The first interrupt sends the ranks TERM, which these ignore; the second one kills them."""
    process = launch(tmp_path, "ignore_signals")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "SIGTERM\n"
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 1 and "still here" not in said


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_signals_to_the_whole_tree(tmp_path: Path) -> None:
    """Schedulers may signal torchrun, too: it goes on waiting for the rank that saves."""
    process = launch(tmp_path, "leave_on_mark")
    assert process.stdout is not None
    torchrun_pid = int(process.stdout.readline().split()[2])
    os.kill(torchrun_pid, signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    assert has_signal(torchrun_pid, "SigIgn", signal.SIGTERM)
    os.kill(torchrun_pid, signal.SIGTERM)
    (tmp_path / "mark").touch()
    process.communicate()
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_launcher_that_just_started(number: int, tmp_path: Path) -> None:
    """Before torchrun runs nothing can be lost: exit code 85 and no output."""
    process = launch(tmp_path, "ignore_signals")
    while not has_signal(process.pid, "SigCgt", SIGNALS[-1]):  # the last that gets a handler
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    said, _ = process.communicate()
    assert (process.returncode, said) == (85, "")


@pytest.mark.skipif(not may_unshare, reason="needs the right to make a PID namespace")
def test_the_first_process_of_a_container_reaps_orphans() -> None:
    """Orphans become its children; as zombies they would fill the container's process table."""
    program = ["-m", "tests.support.processes.programs.leave_an_orphan"]
    command = [*PID_NAMESPACE, *runs.launcher(1), *program]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_two_starts_never_meet(tmp_path: Path) -> None:
    """Node 1 of a new start finds the store of an old one, which still saves: it waits, and no rank
    begins before node 1 of the old start is there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "(folder / (os.environ['TORCHELASTIC_RUN_ID'] + os.environ['RANK'])).touch()\n"
    )

    def start(node: int, uid: str) -> subprocess.Popen[bytes]:
        options = ["--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1", f"--rdzv-id={uid}"]
        options += ["--master-addr=127.0.0.1", f"--master-port={port}", str(script)]
        return subprocess.Popen([sys.executable, "-m", "quickdraw_dist.launch", *options])

    old, stray = start(0, "old"), start(1, "new")
    try:
        store = dist.TCPStore("127.0.0.1", port, timeout=timedelta(seconds=60))
        store.wait([f"{uid}/torchelastic/role_info/{n}" for n, uid in enumerate(("old", "new"))])
        assert not list(tmp_path.glob("*[01]"))
        assert start(1, "old").wait(60) == old.wait(60) == 0
        assert {path.name for path in tmp_path.glob("*[01]")} == {"old0", "old1"}
    finally:
        stray.kill()
        stray.wait()
