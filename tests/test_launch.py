"""The launcher: what it returns, what it starts again, and that nothing outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import run as torchrun

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.distributed import torchrun as agent
from quickdraw_dist.distributed.signals import SIGNALS
from quickdraw_dist.launch import outcome
from tests.support import runs


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
def test_outcome(torchrun: int, codes: list[int], signalled: bool, code: int) -> None:
    """Of two ranks: 85 only where nothing was lost, 2 only where a retry cannot help."""
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
def test_refused(arguments: list[str], parts: list[str]) -> None:
    """What would lose work in silence."""
    parser = torchrun.get_args_parser()
    parser.add_argument("--restarts", type=int, default=0)
    parsed = parser.parse_args([*arguments, "script.py"])
    with pytest.raises(RefusedError) as refused:
        agent._check(parsed)
    assert all(part in str(refused.value) for part in parts)


def test_torchrun_waits_a_little_longer_than_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a rank's own words come first; torchrun's argument, where given, stands."""
    monkeypatch.setenv("QUICKDRAW_TRAIN__SHUTDOWN_SECONDS", "7.5")
    for given, seconds in (([], 13), (["--shutdown-timeout=3"], 3)):
        parsed = torchrun.parse_args([*given, "-m", "quickdraw_dist.train"])
        parsed.restarts = 0
        agent._check(parsed)
        assert parsed.shutdown_timeout == seconds


def test_help(capfd: pytest.CaptureFixture[str]) -> None:
    """Exit codes and options, in words."""
    done = subprocess.run([*runs.launcher(1), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("--restarts N", "85 stopped by a signal", "INT"))


def test_a_refusal_is_the_last_line(tmp_path: Path) -> None:
    """Not 40 lines of torchrun's after it."""
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


# -- with a script instead of a training -----------------------------------------------------------

CRASH_ONCE = """
import os, signal, sys
from pathlib import Path
from quickdraw_dist.distributed.signals import leave
if (rank := os.environ["RANK"]) == "1":
    try:
        Path(sys.argv[1]).touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)
    except FileExistsError:
        pass
leave(0)
"""

WAIT = """
import os, signal, sys, time
from quickdraw_dist.base.process import die_with_parent
die_with_parent()
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: print(signal.Signals(number).name, flush=True))
print("ready", os.getpid(), os.getppid(), flush=True)
time.sleep(600)
print("still here", flush=True)
"""

ORPHAN = """
import os, time
from quickdraw_dist.distributed.signals import leave
if os.fork() == 0:
    if os.fork() == 0:
        os._exit(0)  # its parent is gone or about to go: the first process inherits it
    os._exit(0)
os.wait()
zombies = lambda: [p for p in os.listdir("/proc") if p.isdigit() and b") Z " in stat(p)]
def stat(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read()
    except OSError:
        return b""
until = time.monotonic() + 30
while zombies() and time.monotonic() < until:
    time.sleep(0.01)
leave(85 if zombies() else 0)
"""


def launch(tmp_path: Path, script: str, *options: str, ranks: int = 1) -> subprocess.Popen[str]:
    """The launcher with a script of few lines, and a file for it to use."""
    path = tmp_path / "script.py"
    path.write_text(script)
    return subprocess.Popen(
        [*runs.launcher(ranks, *options), str(path), str(tmp_path / "mark")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(("restarts", "code"), [(1, 0), (0, 1)])
def test_restarts(restarts: int, code: int, tmp_path: Path) -> None:
    """A crashed run is started again if that is asked for; which rank died of what is said."""
    process = launch(tmp_path, CRASH_ONCE, f"--restarts={restarts}", ranks=2)
    said, _ = process.communicate()
    assert process.returncode == code, said
    assert ("crashed; restart 1 of 1" in said) == bool(restarts)
    assert "rank 1 (process " in said and "was ended by SIGKILL" in said


@pytest.mark.parametrize("victim", ["launcher", "torchrun"])
def test_nothing_outlives_the_killed(victim: str, tmp_path: Path) -> None:
    """The ranks hold the launcher's output open: it ends only when the last of them is gone."""
    process = launch(tmp_path, WAIT, ranks=2)
    assert process.stdout is not None
    torchrun_pid = int(process.stdout.readline().split()[2])
    assert process.stdout.readline().startswith("ready")
    os.kill(process.pid if victim == "launcher" else torchrun_pid, signal.SIGKILL)
    said, _ = process.communicate()
    assert "still here" not in said
    assert process.returncode == (-signal.SIGKILL if victim == "launcher" else 1)


def test_a_second_interrupt_ends_everything(tmp_path: Path) -> None:
    """The ranks here do not end by TERM, which is all that the first one sends them."""
    process = launch(tmp_path, WAIT)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "SIGTERM\n"
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 1 and "still here" not in said


def has(pid: int, field: str, number: int) -> bool:
    """Whether a set of signals of a process has one: SigCgt, those with handlers, or SigIgn."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition(f"{field}:")[2].split()[0], 16) >> (number - 1) & 1)


SAVE = """
import os, signal, sys, time
from pathlib import Path
from quickdraw_dist.distributed.signals import leave
signal.signal(signal.SIGTERM, lambda *_: print("SIGTERM", flush=True))
print("ready", os.getpid(), os.getppid(), flush=True)
while not Path(sys.argv[1]).exists():
    time.sleep(0.01)
leave(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_signals_to_the_whole_tree(tmp_path: Path) -> None:
    """Some schedulers send them to torchrun, too: it goes on waiting for the rank that saves."""
    process = launch(tmp_path, SAVE)
    assert process.stdout is not None
    torchrun_pid = int(process.stdout.readline().split()[2])
    os.kill(torchrun_pid, signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    assert has(torchrun_pid, "SigIgn", signal.SIGTERM)
    os.kill(torchrun_pid, signal.SIGTERM)
    (tmp_path / "mark").touch()
    process.communicate()
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_launcher_that_just_started(number: int, tmp_path: Path) -> None:
    """Before there is a torchrun, or while that is still importing: nothing was lost."""
    process = launch(tmp_path, WAIT)
    while not has(process.pid, "SigCgt", SIGNALS[-1]):  # the last that gets a handler
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(number)
    said, _ = process.communicate()
    assert (process.returncode, said) == (85, "")


NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
may_unshare = subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not may_unshare, reason="needs the right to make a PID namespace")
def test_the_first_process_of_a_container_buries_the_dead(tmp_path: Path) -> None:
    """Orphans become its children; as zombies they would fill the container's process table."""
    (tmp_path / "script.py").write_text(ORPHAN)
    command = [*NAMESPACE, *runs.launcher(1), str(tmp_path / "script.py")]
    assert subprocess.run(command, capture_output=True).returncode == 0
